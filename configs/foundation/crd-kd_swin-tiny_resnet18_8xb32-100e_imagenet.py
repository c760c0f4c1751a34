_base_ = [
    './crd_swin-tiny_resnet18_8xb32-100e_imagenet.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
