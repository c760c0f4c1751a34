_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_b256-100e.py',
    '../_base_/pairs/resnet34_resnet18_imagenet.py',
    '../_base_/distillers/sp.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
