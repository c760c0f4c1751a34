_base_ = [
    '../sp/sp_resnet32x4_resnet8x4_b64-240e_cifar100.py',
    '../_base_/distillers/cktf_second_smallest.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.sp, _base_.cktf)
