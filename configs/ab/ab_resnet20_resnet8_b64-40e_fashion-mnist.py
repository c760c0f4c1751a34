_base_ = [
    '../_base_/settings/fashion-mnist_b64-30e-40e.py',
    '../_base_/pairs/resnet20_resnet8_fashion-mnist.py',
    '../_base_/distillers/ab.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.ab)
