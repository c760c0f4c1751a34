"""Similarity-preserving distillation (Tung and Mori, arXiv:1907.09682), on the last map.

The weight is that of HobbitLong/RepDistiller: 3000 beside the cross-entropy.
"""

sp = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_sp=dict(type='crd_plugin.SPLoss', loss_weight=3000)),
        loss_forward_mappings=dict(
            loss_sp=dict(
                s_feats=dict(recorder='stages', from_student=True, data_idx=-1),
                t_feats=dict(recorder='stages', from_student=False, data_idx=-1),
            )
        ),
    ),
)
