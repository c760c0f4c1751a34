_base_ = [
    './crd_vgg19_vgg8_b64-240e_tiny-imagenet.py',
    '../_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd, _base_.kd)
