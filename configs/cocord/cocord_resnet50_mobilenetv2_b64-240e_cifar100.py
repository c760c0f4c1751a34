_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/cifar100.py',
    '../_base_/schedules/cifar_b64-240e_lr001.py',
    '../_base_/pairs/resnet50_mobilenetv2_cifar100.py',
    '../_base_/distillers/cocord.py',
]
model = dict(architecture=_base_.student, teacher=_base_.teacher, teacher_ckpt=_base_.teacher_ckpt)
views = dict(type='crd_plugin.MultiViewPipeline', transforms=_base_.train_pipeline)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=[views])))
