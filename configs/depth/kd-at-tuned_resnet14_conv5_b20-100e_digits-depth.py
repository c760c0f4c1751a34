_base_ = '../_base_/settings/digits-depth_tuned.py'
init_cfg = dict(
    type='Pretrained',
    checkpoint='work_dirs/kd-at_resnet14_conv5_b64-40e_digits-depth/epoch_40.pth',
    prefix='architecture.backbone.',
)
model = dict(backbone=dict(init_cfg=init_cfg))
