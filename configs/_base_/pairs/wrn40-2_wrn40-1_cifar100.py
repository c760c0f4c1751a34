"""WRN-40-2 and WRN-40-1 for CIFAR-100."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('wrn_40_1', 100, out_indices=(0, 1, 2)),
    teacher=build_cifar_classifier_cfg('wrn_40_2', 100, out_indices=(0, 1, 2)),
    # Train it with configs/vanilla/vanilla_wrn40-2_b64-240e_cifar100.py, or convert
    # the published one: tools/model_converters/repdistiller_to_crd.py.
    teacher_ckpt='work_dirs/vanilla_wrn40-2_b64-240e_cifar100/epoch_240.pth',
    # DKD: megvii-research/mdistiller @ a08d46f.
    published=dict(
        loss_dkd=dict(distiller=dict(distill_losses=dict(loss_dkd=dict(beta=6)))),
    ),
)
