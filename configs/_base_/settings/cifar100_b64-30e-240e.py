"""CIFAR-100, the schedule of the CRD paper behind a first stage of 30 epochs: AB, FT, FSP."""

_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/cifar_b64-30e-240e.py']
train_dataloader = dict(batch_size=64)
