_base_ = [
    '../_base_/settings/tiny-imagenet_b64-240e.py',
    '../_base_/pairs/resnet18-l_resnet18-ab_tiny-imagenet.py',
]
model = _base_.pair.teacher
model.data_preprocessor.to_rgb = _base_.data_preprocessor.to_rgb
