"""CKTF on Tiny-ImageNet: temperature 0.07. Source: kaiqi123/CKTF @ b2bba29."""

_base_ = './cktf.py'
cktf = dict(distiller=dict(distill_losses=dict(loss_cktf=dict(temperature=0.07))))
