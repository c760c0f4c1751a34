"""CRD on the digits: K / N = 0.32, as published (16,384 of 50,000)."""

_base_ = './crd.py'
crd = dict(distiller=dict(distill_losses=dict(loss_crd=dict(num_negatives=32))))
