"""Contrastive representation distillation (Tian et al., arXiv:1910.10699).

The settings are those of HobbitLong/RepDistiller: 0.8 of the objective beside the cross-entropy,
on the penultimate features.
"""

crd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(
            feat=dict(type='crd_plugin.PenultimateFeature'),
            ids=dict(type='crd_plugin.SampleField', source='sample_idx'),
            labels=dict(type='crd_plugin.SampleField', source='gt_label'),
        ),
        teacher_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        connectors=dict(
            crd_student=dict(type='crd_plugin.EmbeddingConnector'),
            crd_teacher=dict(type='crd_plugin.EmbeddingConnector'),
        ),
        distill_losses=dict(loss_crd=dict(type='crd_plugin.CRDLoss', loss_weight=0.8)),
        loss_forward_mappings=dict(
            loss_crd=dict(
                s_feats=dict(recorder='feat', from_student=True, connector='crd_student'),
                t_feats=dict(recorder='feat', from_student=False, connector='crd_teacher'),
                sample_idx=dict(recorder='ids', from_student=True),
                labels=dict(recorder='labels', from_student=True),
            )
        ),
    ),
)
