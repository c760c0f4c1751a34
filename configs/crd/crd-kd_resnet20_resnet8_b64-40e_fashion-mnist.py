_base_ = [
    './crd_resnet20_resnet8_b64-40e_fashion-mnist.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
