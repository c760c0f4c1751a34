_base_ = [
    '../_base_/settings/photos-unlabeled_b50-20e.py',
    '../_base_/pairs/resnet8-l_resnet8-ab_photos.py',
    '../_base_/distillers/fitnet_unlabeled.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.fitnet)
