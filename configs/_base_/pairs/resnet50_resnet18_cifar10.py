"""ResNet-50 of MMPretrain's zoo and ResNet-18 for CIFAR-10."""

pair = dict(
    architecture=dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=18, out_indices=(0, 1, 2, 3)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=10,
            in_channels=512,
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
    ),
    teacher=dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet_CIFAR', depth=50, out_indices=(0, 1, 2, 3)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=10,
            in_channels=2048,
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
    ),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet50_b16x8_cifar10_20210528-f54bfad9.pth',
)
