_base_ = [
    '../_base_/settings/stl10_b64-120e.py',
    '../_base_/pairs/alexnet-l_alexnet-ab_tiny-imagenet.py',
]
model = _base_.pair.architecture
model.type, model.head.num_classes = 'crd_plugin.LinearProbe', 10
model.neck, model.head.in_channels = dict(type='crd_plugin.LayerFeature', layer=4), 96 * 7 * 7
model.backbone_ckpt = 'work_dirs/crd_alexnet-l_alexnet-ab_b64-240e_stl10-unlabeled/epoch_240.pth'
