_base_ = '../_base_/settings/nyu-depth_tuned.py'
init_cfg = dict(
    type='Pretrained',
    checkpoint='work_dirs/fitnet_resnet18_conv5_b16-200e_nyu-depth/epoch_200.pth',
    prefix='architecture.backbone.',
)
model = dict(backbone=dict(init_cfg=init_cfg))
