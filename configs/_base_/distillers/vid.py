"""Variational information distillation (Ahn et al., arXiv:1904.05835), on every stage.

The weight is that of HobbitLong/RepDistiller: 1 beside the cross-entropy. The bound can be
negative, and so can the loss.
"""

vid = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_vid=dict(type='crd_plugin.VIDLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_vid=dict(
                s_feats=dict(recorder='stages', from_student=True),
                t_feats=dict(recorder='stages', from_student=False),
            )
        ),
    ),
)
