"""CIFAR-100, 200 epochs on 8 GPUs with 16 images each: the schedule of MMRazor."""

_base_ = ['../default_runtime.py', '../datasets/cifar100.py', '../schedules/cifar_8xb16-200e.py']
train_dataloader = dict(batch_size=16)  # per GPU, on eight
