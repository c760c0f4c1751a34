"""ResNet-18 twice, with a 3x3 stem: the teacher sees luminance, the student chrominance."""

_base_ = ['../lab.py', './resnet18_resnet18_tiny-imagenet.py']
pair = dict(
    architecture=dict(data_preprocessor=_base_.chrominance, backbone=dict(in_channels=2)),
    teacher=dict(data_preprocessor=_base_.luminance, backbone=dict(in_channels=1)),
    # Train it with configs/cross-modal/vanilla_resnet18-l_b64-240e_tiny-imagenet.py.
    teacher_ckpt='work_dirs/vanilla_resnet18-l_b64-240e_tiny-imagenet/epoch_240.pth',
    input_shape=(3, 64, 64),
)
