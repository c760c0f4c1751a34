"""Knowledge distillation (Hinton et al., arXiv:1503.02531) at temperature 4.

The weights are those of HobbitLong/RepDistiller: alone, 0.1 cross-entropy + 0.9 KL; beside
another method, both are 1.
"""

kd = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='crd_plugin.Logits')),
        teacher_recorders=dict(logits=dict(type='crd_plugin.Logits')),
        distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4, loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                preds_S=dict(recorder='logits', from_student=True),
                preds_T=dict(recorder='logits', from_student=False),
            )
        ),
    ),
    # Counts if no other method is joined.
    alone=dict(
        student_loss_weight=0.1,
        distiller=dict(distill_losses=dict(loss_kd=dict(loss_weight=0.9))),
    ),
)
