"""ResNet-34 of MMPretrain's zoo and ResNet-18 for ImageNet."""

pair = dict(
    architecture=dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=18, out_indices=(0, 1, 2, 3)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=1000,
            in_channels=512,
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
    ),
    teacher=dict(
        type='mmpretrain.ImageClassifier',
        backbone=dict(type='mmpretrain.ResNet', depth=34, out_indices=(0, 1, 2, 3)),
        neck=dict(type='mmpretrain.GlobalAveragePooling'),
        head=dict(
            type='mmpretrain.LinearClsHead',
            num_classes=1000,
            in_channels=512,
            loss=dict(type='mmpretrain.CrossEntropyLoss'),
        ),
    ),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet34_8xb32_in1k_20210831-f257d4e6.pth',
    # 0.5 cross-entropy + 0.9 KL, as in HobbitLong/RepDistiller#10.
    published=dict(loss_kd=dict(alone=dict(student_loss_weight=0.5))),
)
