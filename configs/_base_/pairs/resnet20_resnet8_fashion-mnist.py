"""ResNet-20 and ResNet-8 for Fashion-MNIST."""

# Without `_base_` in front of an import, MMEngine reads the file in its lazy format.
_base_ = []
from crd_plugin.models.backbones import build_cifar_classifier_cfg

pair = dict(
    architecture=build_cifar_classifier_cfg('resnet8', 10, out_indices=(0, 1, 2)),
    teacher=build_cifar_classifier_cfg('resnet20', 10, out_indices=(0, 1, 2)),
    input_shape=(3, 28, 28),
    channels_last=True,
    # Train it with configs/vanilla/vanilla_resnet20_b64-12e_fashion-mnist.py, on all 60,000 images.
    teacher_ckpt='work_dirs/vanilla_resnet20_b64-12e_fashion-mnist/epoch_12.pth',
)
