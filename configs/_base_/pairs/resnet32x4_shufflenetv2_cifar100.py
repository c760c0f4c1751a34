"""ResNet-32x4 and ShuffleNetV2 for CIFAR-100."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('ShuffleV2', 100, out_indices=(0, 1, 2)),
    teacher=build_cifar_classifier_cfg('resnet32x4', 100, out_indices=(0, 1, 2)),
    # Train it with configs/vanilla/vanilla_resnet32x4_b64-240e_cifar100.py, or convert
    # the published one: tools/model_converters/repdistiller_to_crd.py.
    teacher_ckpt='work_dirs/vanilla_resnet32x4_b64-240e_cifar100/epoch_240.pth',
)
