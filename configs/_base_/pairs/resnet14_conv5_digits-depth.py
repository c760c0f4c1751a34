"""ResNet-14 on grey digits and five convolutions on their "depth", without labels."""

pair = dict(
    architecture=dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[1.0], std=[1.0]),
        backbone=dict(
            type='crd_plugin.PlainConvNet',
            widths=(16, 32, 32, 64, 64),
            strides=(1, 2, 1, 1, 1),
            out_indices=(0, 2, 4),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')
        ),
    ),
    teacher=dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor', mean=[78.0] * 3, std=[81.4] * 3),
        backbone=dict(type='crd_plugin.CIFARResNet', depth=14, out_indices=(0, 1, 2)),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(
            type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')
        ),
    ),
    # Train it with configs/vanilla/vanilla_resnet14_b20-100e_digits.py.
    teacher_ckpt='work_dirs/vanilla_resnet14_b20-100e_digits/epoch_100.pth',
    teacher_view=dict(type='crd_plugin.ChannelView', channels=[0, 1, 2]),
    student_view=dict(type='crd_plugin.ChannelView', channels=[3]),
    input_shape=(4, 16, 16),
    calculate_student_loss=False,
)
