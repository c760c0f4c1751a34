_base_ = [
    '../_base_/settings/fashion-mnist_b64-40e.py',
    '../_base_/pairs/resnet20_resnet8_fashion-mnist.py',
    '../_base_/distillers/online_kd.py',
]
model = dict(_base_.online_kd, architecture=_base_.pair.architecture, branch_from='backbone.layer3')
