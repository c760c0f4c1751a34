"""ResNet-34 and ResNet-10 for Tiny-ImageNet.

Four stages behind a 3x3 stem of stride 1 and no pooling, as for 32x32
images. Source: kaiqi123/CKTF, models/resnetv2.py @ b2bba29.
"""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('ResNet50', 200, out_indices=(0, 1, 2, 3), depth=10),
    teacher=build_cifar_classifier_cfg('ResNet50', 200, out_indices=(0, 1, 2, 3), depth=34),
    # Train it with configs/vanilla/vanilla_resnet34_b64-240e_tiny-imagenet.py.
    teacher_ckpt='work_dirs/vanilla_resnet34_b64-240e_tiny-imagenet/epoch_240.pth',
    # Source: kaiqi123/CKTF @ b2bba29; 0.1 is that of CIFAR-100.
    published=dict(
        loss_cktf=dict(distiller=dict(distill_losses=dict(loss_cktf=dict(temperature=0.07))))
    ),
)
# Their last stage has basic blocks, a quarter of the width of ResNet-50.
pair['architecture']['head']['in_channels'] = 512
pair['teacher']['head']['in_channels'] = 512
