_base_ = [
    './crd_resnet34_resnet18_8xb32-100e_imagenet.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
