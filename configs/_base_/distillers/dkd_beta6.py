"""DKD with beta 6, as megvii-research/mdistiller has it for pairs of WRN-40-2 and VGG-13."""

_base_ = './dkd.py'
dkd = dict(distiller=dict(distill_losses=dict(loss_dkd=dict(beta=6))))
