_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_8xb16-200e.py',
    '../_base_/pairs/resnet110_resnet20_cifar100.py',
    '../_base_/distillers/crd.py',
]
train_dataloader = dict(batch_size=16)  # a GPU
model = dict(
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt='work_dirs/vanilla_resnet110_8xb16-200e_cifar100/epoch_200.pth',
)
