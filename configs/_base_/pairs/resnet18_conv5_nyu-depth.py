"""ResNet-18 of ImageNet on RGB and five convolutions on depth, for NYU-Depth without labels."""

pair = dict(
    architecture=dict(
        type='ImageClassifier',
        # In metres. Chosen, not measured; batch norm behind the first layer makes up for it.
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[2.8], std=[1.4]),
        backbone=dict(type='crd_plugin.PlainConvNet', out_indices=(1, 2, 3, 4)),
        neck=dict(type='GlobalAveragePooling'),
        # The teacher's classes: what KD compares; other methods do not train it.
        head=dict(
            type='LinearClsHead',
            num_classes=1000,
            in_channels=512,
            loss=dict(type='CrossEntropyLoss'),
        ),
    ),
    teacher=dict(
        type='ImageClassifier',
        data_preprocessor=dict(
            type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
        ),
        backbone=dict(type='ResNet', depth=18, out_indices=(0, 1, 2, 3)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead',
            num_classes=1000,
            in_channels=512,
            loss=dict(type='CrossEntropyLoss'),
        ),
    ),
    # Or a file of torchvision, whose names are completed.
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet18_8xb32_in1k_20210831-fbbb1da6.pth',
    teacher_view=dict(type='crd_plugin.ChannelView', channels=[0, 1, 2]),
    student_view=dict(type='crd_plugin.ChannelView', channels=[3]),
    input_shape=(4, 240, 320),
    calculate_student_loss=False,
)
