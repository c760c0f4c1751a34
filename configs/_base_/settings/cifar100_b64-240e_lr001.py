"""CIFAR-100, the schedule of the CRD paper for MobileNet and ShuffleNet students."""

_base_ = [
    '../default_runtime.py',
    '../datasets/cifar100.py',
    '../schedules/cifar_b64-240e_lr001.py',
]
train_dataloader = dict(batch_size=64)
