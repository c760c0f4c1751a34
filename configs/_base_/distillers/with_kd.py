# Adds knowledge distillation to another distiller; the leaf merges it by
# `model = dict(distiller=_base_.with_kd)`. Weight 1.0 beside the full
# cross-entropy, temperature 4: the CRD+KD runs of HobbitLong/RepDistiller.
with_kd = dict(
    student_recorders=dict(logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
    teacher_recorders=dict(logits=dict(type='mmrazor.ModuleOutputs', source='head.fc')),
    distill_losses=dict(loss_kd=dict(type='mmrazor.KLDivergence', tau=4, loss_weight=1.0)),
    loss_forward_mappings=dict(
        loss_kd=dict(
            preds_S=dict(recorder='logits', from_student=True),
            preds_T=dict(recorder='logits', from_student=False),
        )
    ),
)
