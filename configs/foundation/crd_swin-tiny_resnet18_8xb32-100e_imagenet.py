_base_ = [
    '../_base_/settings/imagenet_8xb32-100e.py',
    '../_base_/pairs/swin-tiny_resnet18_imagenet.py',
    '../_base_/distillers/crd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
