# CRD without labels: weight 1, temperature 0.07, negatives any other image, no
# cross-entropy.
_base_ = '../distillers/with_crd.py'
distiller = _base_.with_crd
distiller.student_recorders.pop('labels')
distiller.loss_forward_mappings.loss_crd.pop('labels')
distiller.distill_losses.loss_crd.update(loss_weight=1.0, exclude='instance')
