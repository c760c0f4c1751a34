_base_ = [
    '../_base_/settings/stl10-unlabeled_b64-240e_pixels.py',
    '../_base_/pairs/resnet18-l_resnet18-ab_tiny-imagenet.py',
    '../_base_/distillers/kd_unlabeled.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.kd)
