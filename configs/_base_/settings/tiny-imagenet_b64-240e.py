"""Tiny-ImageNet, 240 epochs of batches of 64."""

_base_ = ['../default_runtime.py', '../datasets/tiny_imagenet.py', '../schedules/cifar_b64-240e.py']
train_dataloader = dict(batch_size=64)
