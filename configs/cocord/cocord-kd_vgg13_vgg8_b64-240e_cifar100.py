_base_ = [
    './cocord_vgg13_vgg8_b64-240e_cifar100.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.cocord, _base_.kd)
