"""CRD with any other image as a negative (table 6 of the paper, i != j)."""

_base_ = './crd.py'
crd = _base_.crd
crd.distiller.distill_losses.loss_crd.exclude = 'instance'
