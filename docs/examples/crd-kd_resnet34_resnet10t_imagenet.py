_base_ = [
    '../../configs/_base_/settings/imagenet_8xb32-100e.py',
    '../../configs/_base_/pairs/resnet34_resnet18_imagenet.py',
    '../../configs/_base_/distillers/crd.py',
    '../../configs/_base_/distillers/kd.py',
]
from crd_plugin.fragments import join

pair = _base_.pair
pair.architecture.backbone = dict(type='TIMMBackbone', model_name='resnet10t')
pair.architecture.head.in_channels = 512
model = join(pair, _base_.crd, _base_.kd)
