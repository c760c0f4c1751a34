_base_ = ['../_base_/settings/stl10_tuned.py', '../_base_/pairs/vgg19_vgg8_tiny-imagenet.py']
model = _base_.pair.architecture
model.head.num_classes = 10
model.backbone.init_cfg = dict(
    type='Pretrained',
    checkpoint='work_dirs/cktf_vgg19_vgg8_b64-240e_stl10-unlabeled/epoch_240.pth',
    prefix='architecture.backbone.',
)
