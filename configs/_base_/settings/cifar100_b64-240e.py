"""CIFAR-100, 240 epochs of batches of 64: the schedule of the CRD paper."""

_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/cifar_b64-240e.py']
train_dataloader = dict(batch_size=64)
