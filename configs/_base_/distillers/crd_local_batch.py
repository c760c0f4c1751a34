"""The same without a memory bank: negatives are the other images of the batch of all ranks."""

_base_ = './crd_local.py'
crd = _base_.crd
crd.distiller.distill_losses.loss_crd.update(negatives='batch', objective='infonce')
