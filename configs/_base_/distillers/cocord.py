"""Contrastive consistent representation distillation (Fu et al., BMVC 2023).

The settings are those of ShipengFu/CoCoRD, on the penultimate features. It needs three views of
each image: take settings/*_3views.py.
"""

cocord = dict(
    type='crd_plugin.CoCoRDDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        teacher_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        distill_losses=dict(loss_cocord=dict(type='crd_plugin.CoCoRDLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_cocord=dict(
                # The student saw the first and the second view, then the slow student the second
                # and the first.
                s_feats=dict(recorder='feat', from_student=True, record_idx=0),
                s_feats_2=dict(recorder='feat', from_student=True, record_idx=1),
                slow_feats_2=dict(recorder='feat', from_student=True, record_idx=2),
                slow_feats=dict(recorder='feat', from_student=True, record_idx=3),
                t_feats=dict(recorder='feat', from_student=False),
            )
        ),
    ),
)
