_base_ = [
    '../../configs/_base_/settings/imagenet_8xb32-100e.py',
    '../../configs/_base_/distillers/crd.py',
    '../../configs/_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

pair = dict(
    architecture=dict(
        type='ImageClassifier',
        backbone=dict(type='TIMMBackbone', model_name='resnet10t'),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
    ),
    teacher=dict(
        type='ImageClassifier',
        backbone=dict(type='ResNet', depth=34),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
    ),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet34_8xb32_in1k_20210831-f257d4e6.pth',
)
model = join(pair, _base_.crd, _base_.kd)
