"""Neuron selectivity transfer (Huang and Wang, arXiv:1707.01219), on every stage.

The weight is that of HobbitLong/RepDistiller: 50 beside the cross-entropy.
"""

nst = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_nst=dict(type='crd_plugin.NSTLoss', loss_weight=50)),
        loss_forward_mappings=dict(
            loss_nst=dict(
                s_feats=dict(recorder='stages', from_student=True),
                t_feats=dict(recorder='stages', from_student=False),
            )
        ),
    ),
)
