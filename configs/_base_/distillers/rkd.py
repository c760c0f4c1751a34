"""Relational knowledge distillation (Park et al., arXiv:1904.05068), on the penultimate features.

The weights are those of HobbitLong/RepDistiller: 25 for the distances and 50 for the angles
beside the cross-entropy.
"""

rkd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        teacher_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        distill_losses=dict(loss_rkd=dict(type='crd_plugin.RKDLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_rkd=dict(
                s_feats=dict(recorder='feat', from_student=True),
                t_feats=dict(recorder='feat', from_student=False),
            )
        ),
    ),
)
