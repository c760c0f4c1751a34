_base_ = [
    '../_base_/settings/imagenet_8xb32-100e.py',
    '../_base_/pairs/wrn22-4_wrn16-2_imagenet.py',
]
model = _base_.pair.architecture
