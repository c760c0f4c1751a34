_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_8xb16-200e.py',
    '../_base_/pairs/wrn22-4_wrn16-2_cifar100.py',
    '../_base_/distillers/crd.py',
]
train_dataloader = dict(batch_size=16)  # a GPU
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
