"""InfoNCE in place of the objective of CRD (table 6 of the paper, y_i != y_j)."""

_base_ = './crd.py'
crd = _base_.crd
crd.distiller.distill_losses.loss_crd.objective = 'infonce'
