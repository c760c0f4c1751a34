"""VGG-16 and VGG-11 for Tiny-ImageNet, pooled four times at 64x64."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('vgg11', 200, out_indices=(0, 1, 2, 3)),
    teacher=build_cifar_classifier_cfg('vgg16', 200, out_indices=(0, 1, 2, 3)),
    # Train it with configs/vanilla/vanilla_vgg16_b64-240e_tiny-imagenet.py.
    teacher_ckpt='work_dirs/vanilla_vgg16_b64-240e_tiny-imagenet/epoch_240.pth',
    # Source: kaiqi123/CKTF @ b2bba29; 0.1 is that of CIFAR-100.
    published=dict(
        loss_cktf=dict(distiller=dict(distill_losses=dict(loss_cktf=dict(temperature=0.07))))
    ),
)
