# FitNet (Romero et al., arXiv:1412.6550) with the weight of
# HobbitLong/RepDistiller: 100 of the hint beside the cross-entropy, on the
# second stage, the regressor trained along with the student.
model = dict(
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
