"""Probabilistic knowledge transfer (Passalis and Tefas, arXiv:1803.10837).

On the penultimate features, with the weight of HobbitLong/RepDistiller: 30000 beside the
cross-entropy.
"""

pkt = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        teacher_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        distill_losses=dict(loss_pkt=dict(type='crd_plugin.PKTLoss', loss_weight=30000)),
        loss_forward_mappings=dict(
            loss_pkt=dict(
                s_feats=dict(recorder='feat', from_student=True),
                t_feats=dict(recorder='feat', from_student=False),
            )
        ),
    ),
)
