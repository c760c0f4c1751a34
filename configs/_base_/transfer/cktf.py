# CKTF without labels: 1 at the penultimate layer, 0.04 at the others,
# temperature 0.07, negatives any other image, no cross-entropy.
_base_ = '../distillers/with_cktf.py'
distiller = _base_.with_cktf
distiller.student_recorders.pop('labels')
distiller.loss_forward_mappings.loss_cktf.pop('labels')
distiller.distill_losses.loss_cktf.update(
    beta=1.0, theta=0.04, temperature=0.07, exclude='instance'
)
