_base_ = [
    './cktf_resnet32x4_resnet8x4_b64-240e_cifar100.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
