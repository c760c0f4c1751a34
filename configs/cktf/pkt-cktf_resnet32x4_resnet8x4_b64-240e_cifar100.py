_base_ = [
    '../pkt/pkt_resnet32x4_resnet8x4_b64-240e_cifar100.py',
    '../_base_/distillers/cktf_second_smallest.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.pkt, _base_.cktf)
