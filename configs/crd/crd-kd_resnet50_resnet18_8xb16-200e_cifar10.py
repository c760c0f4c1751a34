_base_ = [
    './crd_resnet50_resnet18_8xb16-200e_cifar10.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
