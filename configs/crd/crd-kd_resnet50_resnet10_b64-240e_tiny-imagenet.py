_base_ = [
    './crd_resnet50_resnet10_b64-240e_tiny-imagenet.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
