_base_ = [
    '../_base_/settings/imagenet_8xb32-100e.py',
    '../_base_/pairs/resnet34_resnet18_imagenet.py',
    '../_base_/distillers/online_kd.py',
]
# The last two stages of four.
model = dict(_base_.online_kd, architecture=_base_.pair.architecture, branch_from='backbone.layer3')
