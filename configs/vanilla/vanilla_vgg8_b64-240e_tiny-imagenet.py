_base_ = [
    '../_base_/settings/tiny-imagenet_b64-240e.py',
    '../_base_/pairs/vgg19_vgg8_tiny-imagenet.py',
]
model = _base_.pair.architecture
