_base_ = [
    '../_base_/settings/photos-few_b50-40e.py',
    '../_base_/pairs/resnet8-l_resnet8-ab_photos.py',
]
model = _base_.pair.architecture
model.type, model.finetune = 'crd_plugin.LinearProbe', True
model.backbone_ckpt = 'work_dirs/crd_resnet8-l_resnet8-ab_b50-20e_photos-unlabeled/epoch_20.pth'
