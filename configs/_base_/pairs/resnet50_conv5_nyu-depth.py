"""ResNet-50 of ImageNet on RGB and five convolutions on depth, for NYU-Depth without labels."""

_base_ = './resnet18_conv5_nyu-depth.py'
pair = dict(
    teacher=dict(backbone=dict(depth=50), head=dict(in_channels=2048)),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet50_8xb32_in1k_20210831-ea4938fc.pth',
)
