_base_ = [
    '../_base_/settings/tiny-imagenet_b64-240e.py',
    '../_base_/pairs/resnet34_resnet10_tiny-imagenet.py',
    '../_base_/distillers/cktf.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.cktf)
