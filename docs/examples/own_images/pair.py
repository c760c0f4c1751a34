"""Teacher and student, both networks of MMPretrain."""


def classifier(backbone, in_channels):
    """Config of a classifier of 4 classes."""
    return dict(
        type='ImageClassifier',
        backbone=backbone,
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=4,
            in_channels=in_channels,
            loss=dict(type='CrossEntropyLoss'),
        ),
    )


pair = dict(
    architecture=classifier(dict(type='MobileNetV2', widen_factor=0.5), 1280),
    teacher=classifier(dict(type='ResNet', depth=18), 512),
    teacher_ckpt='work_dirs/teacher/epoch_10.pth',
)
