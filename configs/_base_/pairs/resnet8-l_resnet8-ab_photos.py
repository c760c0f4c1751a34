"""ResNet-8 twice, half as wide, at 32x32: the teacher sees luminance, the student chrominance."""

_base_ = '../lab.py'
teacher = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=_base_.luminance,
    backbone=dict(
        type='crd_plugin.CIFARResNet',
        depth=8,
        in_channels=1,
        stem_channels=8,
        base_channels=8,
        out_indices=(0, 1, 2),
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=10,
        in_channels=32,
        loss=dict(type='mmpretrain.CrossEntropyLoss', loss_weight=1.0),
    ),
)
pair = dict(
    architecture=dict(
        teacher,
        data_preprocessor=_base_.chrominance,
        backbone=dict(teacher['backbone'], in_channels=2),
    ),
    teacher=teacher,
    # Train it with configs/cross-modal/vanilla_resnet8-l_b50-20e_photos.py.
    teacher_ckpt='work_dirs/vanilla_resnet8-l_b50-20e_photos/epoch_20.pth',
)
del teacher
