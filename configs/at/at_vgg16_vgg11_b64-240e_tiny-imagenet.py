_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/tiny_imagenet.py',
    '../_base_/schedules/tiny_b64-240e.py',
    '../_base_/pairs/vgg16_vgg11_tiny-imagenet.py',
    '../_base_/distillers/at.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
