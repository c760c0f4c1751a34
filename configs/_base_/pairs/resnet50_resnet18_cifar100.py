"""ResNet-50 of MMPretrain's zoo and ResNet-18 for CIFAR-100."""

_base_ = './resnet50_resnet18_cifar10.py'
pair = dict(
    architecture=dict(head=dict(num_classes=100)),
    teacher=dict(head=dict(num_classes=100)),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet50_b16x8_cifar100_20210528-67b58a1b.pth',
)
