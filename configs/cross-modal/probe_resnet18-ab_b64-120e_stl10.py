_base_ = [
    '../_base_/settings/stl10_b64-120e.py',
    '../_base_/pairs/resnet18-l_resnet18-ab_tiny-imagenet.py',
]
model = _base_.pair.architecture
model.type, model.head.num_classes = 'crd_plugin.LinearProbe', 10
model.backbone_ckpt = 'work_dirs/crd_resnet18-l_resnet18-ab_b64-240e_stl10-unlabeled/epoch_240.pth'
