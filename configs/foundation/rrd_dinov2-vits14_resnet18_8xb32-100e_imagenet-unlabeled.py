_base_ = [
    '../_base_/settings/imagenet-unlabeled_8xb32-100e.py',
    '../_base_/pairs/dinov2-vits14_resnet18_imagenet.py',
    '../_base_/distillers/rrd_unlabeled.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.rrd)
