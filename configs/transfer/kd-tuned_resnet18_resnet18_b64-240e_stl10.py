_base_ = [
    '../_base_/transfer/tune.py',
    '../_base_/transfer/resnet18_resnet18.py',
]
model = _base_.student
model.head.num_classes = 10
model.backbone.init_cfg = dict(
    type='Pretrained',
    checkpoint=('work_dirs/kd_resnet18_resnet18_b64-240e_stl10-unlabeled/epoch_240.pth'),
    prefix='architecture.backbone.',
)
