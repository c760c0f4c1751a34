"""KD of standardised logits (Sun et al., arXiv:2403.01427) at temperature 2, with weight 9.

The settings are those of sunshangquan/logit-standardization-KD: alone, 0.1 cross-entropy + 9 KL.
"""

lskd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='crd_plugin.Logits')),
        teacher_recorders=dict(logits=dict(type='crd_plugin.Logits')),
        distill_losses=dict(loss_lskd=dict(type='crd_plugin.LSKDLoss', tau=2, loss_weight=9.0)),
        loss_forward_mappings=dict(
            loss_lskd=dict(
                s_feats=dict(recorder='logits', from_student=True),
                t_feats=dict(recorder='logits', from_student=False),
            )
        ),
    ),
    # Counts if no other method is joined.
    alone=dict(student_loss_weight=0.1),
)
