_base_ = [
    './cktf_resnet50_resnet10_b64-240e_tiny-imagenet.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
