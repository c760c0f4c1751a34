_base_ = [
    './cocord_resnet56_resnet20_b64-240e_cifar100.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
