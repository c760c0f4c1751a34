"""LSKD at temperature 3, as published for VGG-13."""

_base_ = './lskd.py'
lskd = dict(distiller=dict(distill_losses=dict(loss_lskd=dict(tau=3))))
