_base_ = [
    '../_base_/transfer/tune.py',
    '../_base_/transfer/vgg19_vgg19.py',
]
model = _base_.student
model.head.num_classes = 10
model.backbone.init_cfg = dict(
    type='Pretrained',
    checkpoint=('work_dirs/kd_vgg19_vgg19_b64-240e_stl10-unlabeled/epoch_240.pth'),
    prefix='architecture.backbone.',
)
