"""Attention transfer (Zagoruyko and Komodakis, arXiv:1612.03928), on every stage.

The weight is that of HobbitLong/RepDistiller: 1000 beside the cross-entropy.
"""

at = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_at=dict(type='crd_plugin.ATLoss', loss_weight=1000)),
        loss_forward_mappings=dict(
            loss_at=dict(
                s_feats=dict(recorder='stages', from_student=True),
                t_feats=dict(recorder='stages', from_student=False),
            )
        ),
    ),
)
