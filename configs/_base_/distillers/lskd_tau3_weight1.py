"""LSKD at temperature 3 with weight 1, as published for ResNet-50 to MobileNetV2."""

_base_ = './lskd.py'
lskd = dict(distiller=dict(distill_losses=dict(loss_lskd=dict(tau=3, loss_weight=1.0))))
