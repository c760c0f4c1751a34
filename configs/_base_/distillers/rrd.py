"""Relational representation distillation (Giakoumoglou and Stathaki, arXiv:2407.12073).

The settings are the defaults of giakoumoglou/distillers: weight 1 beside the cross-entropy, 128
dimensions, a queue of 16,384 rows, temperatures 0.1 (student) and 0.02 (teacher), on the
penultimate features.
"""

rrd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        teacher_recorders=dict(feat=dict(type='crd_plugin.PenultimateFeature')),
        distill_losses=dict(loss_rrd=dict(type='crd_plugin.RRDLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_rrd=dict(
                s_feats=dict(recorder='feat', from_student=True),
                t_feats=dict(recorder='feat', from_student=False),
            )
        ),
    ),
)
