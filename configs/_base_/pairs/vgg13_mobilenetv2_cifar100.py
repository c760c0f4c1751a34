"""VGG-13 and MobileNetV2 (half width) for CIFAR-100."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('MobileNetV2', 100, out_indices=(0, 1, 2, 3)),
    teacher=build_cifar_classifier_cfg('vgg13', 100, out_indices=(0, 1, 2, 3)),
    # Train it with configs/vanilla/vanilla_vgg13_b64-240e_cifar100.py, or convert
    # the published one: tools/model_converters/repdistiller_to_crd.py.
    teacher_ckpt='work_dirs/vanilla_vgg13_b64-240e_cifar100/epoch_240.pth',
    # DKD: megvii-research/mdistiller @ a08d46f.
    # LSKD: sunshangquan/logit-standardization-KD @ f6e5aa5.
    published=dict(
        loss_dkd=dict(distiller=dict(distill_losses=dict(loss_dkd=dict(beta=6)))),
        loss_lskd=dict(distiller=dict(distill_losses=dict(loss_lskd=dict(tau=3)))),
    ),
)
