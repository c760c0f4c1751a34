_base_ = [
    '../_base_/settings/imagenet_8xb32-100e.py',
    '../_base_/pairs/resnet34_resnet18_imagenet.py',
]
model = _base_.pair.teacher
