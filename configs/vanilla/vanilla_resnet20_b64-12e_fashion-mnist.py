_base_ = [
    '../_base_/settings/fashion-mnist_b64-12e.py',
    '../_base_/pairs/resnet20_resnet8_fashion-mnist.py',
]
model = _base_.pair.teacher
