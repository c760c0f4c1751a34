_base_ = [
    '../_base_/settings/stl10_b64-120e_probe.py',
    '../_base_/pairs/wrn40-2_wrn16-2_cifar100.py',
]
model = _base_.pair.teacher
model.type = 'crd_plugin.LinearProbe'
model.head.num_classes = 10
model.backbone_ckpt = 'work_dirs/vanilla_wrn40-2_b64-240e_cifar100/epoch_240.pth'
