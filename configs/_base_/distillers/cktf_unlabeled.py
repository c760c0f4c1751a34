"""CKTF without labels: no cross-entropy; negatives are any other image.

The weights are 1 at the penultimate layer and 0.04 at the others, the temperature is 0.07.
"""

_base_ = './cktf.py'
cktf = _base_.cktf
cktf.calculate_student_loss = False
cktf.distiller.student_recorders.pop('labels')
cktf.distiller.loss_forward_mappings.loss_cktf.pop('labels')
cktf.distiller.distill_losses.loss_cktf.update(
    beta=1.0, theta=0.04, temperature=0.07, exclude='instance'
)
