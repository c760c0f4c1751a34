_base_ = [
    '../_base_/settings/nyu-depth_b16-200e.py',
    '../_base_/pairs/resnet18_conv5_nyu-depth.py',
    '../_base_/distillers/crd_local_batch.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
