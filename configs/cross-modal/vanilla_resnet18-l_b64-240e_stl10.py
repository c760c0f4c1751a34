_base_ = [
    '../_base_/settings/stl10_b64-240e.py',
    '../_base_/pairs/resnet18-l_resnet18-ab_tiny-imagenet.py',
]
model = _base_.pair.teacher
model.head.num_classes = 10
