"""WRN-22-4 and WRN-16-2 for CIFAR-10."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('wrn_16_2', 10, out_indices=(0, 1, 2)),
    teacher=build_cifar_classifier_cfg('wrn_22_4', 10, out_indices=(0, 1, 2)),
    # Train it with configs/vanilla/vanilla_wrn22-4_8xb16-200e_cifar10.py.
    teacher_ckpt='work_dirs/vanilla_wrn22-4_8xb16-200e_cifar10/epoch_200.pth',
)
