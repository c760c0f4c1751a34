"""VGG-13 and MobileNetV2 (half width) for CIFAR-100."""

# An empty _base_ keeps MMEngine's text format in spite of the import.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg  # noqa

student = build_cifar_classifier_cfg('MobileNetV2', 100, out_indices=(0, 1, 2, 3))
teacher = build_cifar_classifier_cfg('vgg13', 100, out_indices=(0, 1, 2, 3))
# That of the published code, through
# tools/model_converters/repdistiller_to_crd.py, or that of
# configs/vanilla/vanilla_vgg13_b64-240e_cifar100.py.
teacher_ckpt = 'work_dirs/vanilla_vgg13_b64-240e_cifar100/epoch_240.pth'
