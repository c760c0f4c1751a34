"""WRN-22-4 and WRN-16-2, the networks for 32x32 images, on ImageNet.

Their stem, a 3x3 convolution of stride 1, keeps the 224x224 pixels, so the
stages work at 224, 112 and 56: 49 times the operations and activations of a
32x32 image, with the weights of the CIFAR networks but for the classifier.
"""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('wrn_16_2', 1000, out_indices=(0, 1, 2)),
    teacher=build_cifar_classifier_cfg('wrn_22_4', 1000, out_indices=(0, 1, 2)),
    # Train it with configs/vanilla/vanilla_wrn22-4_8xb32-100e_imagenet.py.
    teacher_ckpt='work_dirs/vanilla_wrn22-4_8xb32-100e_imagenet/epoch_100.pth',
)
