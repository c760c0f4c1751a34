"""ResNet-18 twice, of Tiny-ImageNet's 200 classes; a 3x3 stem of stride 1."""

# An empty _base_ keeps MMEngine's text format in spite of the import.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg  # noqa

student = build_cifar_classifier_cfg('ResNet50', 200, out_indices=(0, 1, 2, 3), depth=18)
student['head']['in_channels'] = 512  # basic blocks
teacher = build_cifar_classifier_cfg('ResNet50', 200, out_indices=(0, 1, 2, 3), depth=18)
teacher['head']['in_channels'] = 512
# Train it with configs/transfer/vanilla_resnet18_b64-240e_tiny-imagenet.py.
teacher_ckpt = 'work_dirs/vanilla_resnet18_b64-240e_tiny-imagenet/epoch_240.pth'
