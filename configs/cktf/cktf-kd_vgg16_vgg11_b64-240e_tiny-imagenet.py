_base_ = [
    './cktf_vgg16_vgg11_b64-240e_tiny-imagenet.py',
    '../_base_/distillers/with_kd.py',
]
model = dict(distiller=_base_.with_kd)
