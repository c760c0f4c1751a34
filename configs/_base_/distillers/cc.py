"""Correlation congruence (Peng et al., arXiv:1904.01802), on the penultimate features.

The weight is that of HobbitLong/RepDistiller: 0.02 beside the cross-entropy; features go through
two linear heads of 128 dimensions.
"""

cc = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        teacher_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        distill_losses=dict(loss_cc=dict(type='crd_plugin.CCLoss', loss_weight=0.02)),
        loss_forward_mappings=dict(
            loss_cc=dict(
                s_feats=dict(recorder='feat', from_student=True),
                t_feats=dict(recorder='feat', from_student=False),
            )
        ),
    ),
)
