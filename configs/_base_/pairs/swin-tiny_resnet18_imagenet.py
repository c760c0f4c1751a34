"""Swin-T of MMPretrain's zoo, with its classifier, and ResNet-18 for ImageNet."""

_base_ = './resnet34_resnet18_imagenet.py'
pair = dict(
    teacher=dict(
        backbone=dict(_delete_=True, type='mmpretrain.SwinTransformer', arch='tiny', img_size=224),
        head=dict(in_channels=768),
    ),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/swin-transformer/'
    'swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth',
    teacher_view=dict(type='crd_plugin.ResizeView', size=224),
    published=dict(_delete_=True),
)
