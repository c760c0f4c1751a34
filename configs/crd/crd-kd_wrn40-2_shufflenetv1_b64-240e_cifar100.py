_base_ = [
    './crd_wrn40-2_shufflenetv1_b64-240e_cifar100.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
