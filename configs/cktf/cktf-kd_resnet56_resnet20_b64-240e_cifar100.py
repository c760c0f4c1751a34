_base_ = [
    './cktf_resnet56_resnet20_b64-240e_cifar100.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.cktf, _base_.kd)
