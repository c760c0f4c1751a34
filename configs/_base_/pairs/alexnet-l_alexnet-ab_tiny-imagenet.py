"""Halves of an AlexNet at 64x64: the teacher sees luminance, the student chrominance."""

_base_ = '../lab.py'
teacher = dict(
    type='mmpretrain.ImageClassifier',
    data_preprocessor=_base_.luminance,
    backbone=dict(type='crd_plugin.HalfAlexNet', in_channels=1, out_indices=(0, 1, 2, 3, 4)),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=200,
        in_channels=2048,
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
    # Train it with configs/cross-modal/vanilla_alexnet-l_b64-240e_tiny-imagenet.py.
    teacher_ckpt='work_dirs/vanilla_alexnet-l_b64-240e_tiny-imagenet/epoch_240.pth',
    input_shape=(3, 64, 64),
)
del teacher
