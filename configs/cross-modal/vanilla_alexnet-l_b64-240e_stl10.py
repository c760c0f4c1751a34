_base_ = [
    '../_base_/settings/stl10_b64-240e.py',
    '../_base_/pairs/alexnet-l_alexnet-ab_tiny-imagenet.py',
]
model = _base_.pair.teacher
model.head.num_classes = 10
