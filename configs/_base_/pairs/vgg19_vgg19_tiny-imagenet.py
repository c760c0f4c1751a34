"""VGG-19 twice, of Tiny-ImageNet's 200 classes."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('vgg19', 200, out_indices=(0, 1, 2, 3)),
    teacher=build_cifar_classifier_cfg('vgg19', 200, out_indices=(0, 1, 2, 3)),
    # Train it with configs/vanilla/vanilla_vgg19_b64-240e_tiny-imagenet.py.
    teacher_ckpt='work_dirs/vanilla_vgg19_b64-240e_tiny-imagenet/epoch_240.pth',
)
