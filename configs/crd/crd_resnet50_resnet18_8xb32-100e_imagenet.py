_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_b256-100e.py',
    '../_base_/pairs/resnet50_resnet18_imagenet.py',
    '../_base_/distillers/crd.py',
]
wide = dict(embed_dim=256)
model = dict(
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    distiller=dict(
        connectors=dict(crd_student=wide, crd_teacher=wide), distill_losses=dict(loss_crd=wide)
    ),
)
