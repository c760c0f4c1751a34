"""Distillation by singular value decomposition (Lee et al., arXiv:1807.06819), on every stage.

No published run of HobbitLong/RepDistiller uses it, so its weight beside the cross-entropy is 1.
"""

kdsvd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_kdsvd=dict(type='crd_plugin.KDSVDLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_kdsvd=dict(
                s_feats=dict(recorder='stages', from_student=True),
                t_feats=dict(recorder='stages', from_student=False),
            )
        ),
    ),
)
