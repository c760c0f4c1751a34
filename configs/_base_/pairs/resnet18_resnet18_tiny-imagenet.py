"""ResNet-18 twice, of Tiny-ImageNet's 200 classes; a 3x3 stem of stride 1."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('ResNet50', 200, out_indices=(0, 1, 2, 3), depth=18),
    teacher=build_cifar_classifier_cfg('ResNet50', 200, out_indices=(0, 1, 2, 3), depth=18),
    # Train it with configs/transfer/vanilla_resnet18_b64-240e_tiny-imagenet.py.
    teacher_ckpt='work_dirs/vanilla_resnet18_b64-240e_tiny-imagenet/epoch_240.pth',
)
# Their last stage has basic blocks, a quarter of the width of ResNet-50.
pair['architecture']['head']['in_channels'] = 512
pair['teacher']['head']['in_channels'] = 512
