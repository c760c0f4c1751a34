_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/cifar_8xb16-200e.py',
    '../_base_/pairs/wrn22-4_wrn16-2_cifar10.py',
]
model = _base_.student
