"""ResNet-110 and ResNet-20 for CIFAR-100, the teacher trained with MMRazor's schedule."""

_base_ = './resnet110_resnet20_cifar100.py'
pair = dict(
    # Train it with configs/vanilla/vanilla_resnet110_8xb16-200e_cifar100.py.
    teacher_ckpt='work_dirs/vanilla_resnet110_8xb16-200e_cifar100/epoch_200.pth',
)
