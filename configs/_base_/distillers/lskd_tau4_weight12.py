"""LSKD at temperature 4 with weight 12, as published for ResNet-110 to ResNet-20."""

_base_ = './lskd.py'
lskd = dict(distiller=dict(distill_losses=dict(loss_lskd=dict(tau=4, loss_weight=12.0))))
