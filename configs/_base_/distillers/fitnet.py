"""FitNet (Romero et al., arXiv:1412.6550): a hint on the second stage.

The weight is that of HobbitLong/RepDistiller: 100 beside the cross-entropy. The regressor is
trained along with the student.
"""

fitnet = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_fitnet=dict(type='crd_plugin.FitNetLoss', loss_weight=100)),
        loss_forward_mappings=dict(
            loss_fitnet=dict(
                s_feats=dict(recorder='stages', from_student=True, data_idx=1),
                t_feats=dict(recorder='stages', from_student=False, data_idx=1),
            )
        ),
    ),
)
