_base_ = [
    '../nst/nst_resnet32x4_resnet8x4_b64-240e_cifar100.py',
    '../_base_/distillers/cktf_second.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.nst, _base_.cktf)
