"""DKD with beta 2, as megvii-research/mdistiller has it for ResNet-56 and ResNet-110."""

_base_ = './dkd.py'
dkd = dict(distiller=dict(distill_losses=dict(loss_dkd=dict(beta=2))))
