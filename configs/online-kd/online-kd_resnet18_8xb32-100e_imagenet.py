_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_b256-100e.py',
    '../_base_/pairs/resnet34_resnet18_imagenet.py',
    '../_base_/distillers/online_kd.py',
]
# The last two stages of four.
model = dict(architecture=_base_.student, branch_from='backbone.layer3')
