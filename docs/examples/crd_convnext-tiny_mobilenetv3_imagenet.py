_base_ = [
    '../../configs/_base_/settings/imagenet_8xb32-100e.py',
    '../../configs/_base_/distillers/crd.py',
]
from crd_plugin.fragments import join

pair = dict(
    architecture=dict(
        type='ImageClassifier',
        backbone=dict(type='MobileNetV3', arch='large'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='StackedLinearClsHead',
            num_classes=1000,
            in_channels=960,
            mid_channels=[1280],
            act_cfg=dict(type='HSwish'),
        ),
    ),
    teacher=dict(cfg_path='mmpretrain::convnext/convnext-tiny_32xb128_in1k.py', pretrained=False),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/'
    'convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth',
)
model = join(pair, _base_.crd)
