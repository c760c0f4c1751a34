_base_ = [
    './crd_resnet50_resnet18_8xb16-200e_cifar10.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
