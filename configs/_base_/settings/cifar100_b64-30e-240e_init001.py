"""CIFAR-100, with a first stage at a learning rate of 0.01: FT on ResNet and WRN students."""

_base_ = [
    '../default_runtime.py',
    '../datasets/cifar100.py',
    '../schedules/cifar_b64-30e-240e_init001.py',
]
train_dataloader = dict(batch_size=64)
