"""CRD without labels: weight 1, no cross-entropy; negatives are any other image."""

_base_ = './crd.py'
crd = _base_.crd
crd.calculate_student_loss = False
crd.distiller.student_recorders.pop('labels')
crd.distiller.loss_forward_mappings.loss_crd.pop('labels')
crd.distiller.distill_losses.loss_crd.update(loss_weight=1.0, exclude='instance')
