"""Tiny-ImageNet, 240 epochs of batches of 64 behind a first stage of 30 epochs: AB, FT."""

_base_ = [
    '../default_runtime.py',
    '../datasets/tiny_imagenet.py',
    '../schedules/cifar_b64-30e-240e.py',
]
train_dataloader = dict(batch_size=64)
