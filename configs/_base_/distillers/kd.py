# Knowledge distillation (Hinton et al., arXiv:1503.02531) with the weights of
# HobbitLong/RepDistiller: 0.1 cross-entropy + 0.9 KL at temperature 4.
model = dict(
    type='crd_plugin.FrozenTeacherDistill',
    architecture=dict(head=dict(loss=dict(loss_weight=0.1))),
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
        teacher_recorders=dict(logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
        distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4, loss_weight=0.9)),
        loss_forward_mappings=dict(
            loss_kd=dict(
                preds_S=dict(recorder='logits', from_student=True),
                preds_T=dict(recorder='logits', from_student=False),
            )
        ),
    ),
)
