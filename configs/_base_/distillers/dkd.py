"""Decoupled knowledge distillation (Zhao et al., arXiv:2203.08679) at temperature 4, with beta 8.

The settings are those of megvii-research/mdistiller on CIFAR-100: weight 1 beside the
cross-entropy, reached after 20 epochs.
"""

dkd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(
            logits=dict(type='crd_plugin.Logits'),
            labels=dict(type='crd_plugin.SampleField', source='gt_label'),
        ),
        teacher_recorders=dict(logits=dict(type='crd_plugin.Logits')),
        distill_losses=dict(
            loss_dkd=dict(
                type='crd_plugin.DKDLoss',
                alpha=1,
                beta=8,
                tau=4,
                warmup_epochs=20,
                loss_weight=1.0,
            )
        ),
        loss_forward_mappings=dict(
            loss_dkd=dict(
                s_feats=dict(recorder='logits', from_student=True),
                t_feats=dict(recorder='logits', from_student=False),
                labels=dict(recorder='labels', from_student=True),
            )
        ),
    ),
)
