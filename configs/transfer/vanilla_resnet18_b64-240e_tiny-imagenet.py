_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/tiny_imagenet.py',
    '../_base_/schedules/tiny_b64-240e.py',
    '../_base_/transfer/resnet18_resnet18.py',
]
model = _base_.teacher
