_base_ = '../../configs/crd/crd_resnet34_resnet18_8xb32-100e_imagenet.py'
model = dict(
    architecture=dict(
        backbone=dict(_delete_=True, type='MobileNetV3', arch='large'),
        head=dict(
            type='StackedLinearClsHead',
            in_channels=960,
            mid_channels=[1280],
            act_cfg=dict(type='HSwish'),
        ),
    ),
    teacher=dict(
        backbone=dict(_delete_=True, type='ConvNeXt', arch='tiny'),
        neck=None,  # it averages its last map itself
        head=dict(in_channels=768),
    ),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/'
    'convnext/convnext-tiny_32xb128_in1k_20221207-998cf3e9.pth',
    distiller=dict(teacher_recorders=dict(feat=dict(source='backbone'))),
)
