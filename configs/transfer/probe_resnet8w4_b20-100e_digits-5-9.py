_base_ = [
    '../_base_/settings/digits-5-9_b20-100e_probe.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
]
model = _base_.pair.architecture
model.type = 'crd_plugin.LinearProbe'
model.backbone_ckpt = 'work_dirs/digits-0-4/vanilla_resnet8w4_b20-100e_digits/seed_0/epoch_100.pth'
