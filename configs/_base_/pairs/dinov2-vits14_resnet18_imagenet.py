"""DINOv2 ViT-S/14, which has no classifier, and ResNet-18 for ImageNet."""

_base_ = './resnet34_resnet18_imagenet.py'
pair = dict(
    teacher=dict(
        _delete_=True,
        type='crd_plugin.TimmTeacher',
        model_name='vit_small_patch14_dinov2.lvd142m',
        pool='cls',
        size=224,  # published: 518
    ),
    teacher_ckpt='https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth',
    published=dict(_delete_=True),
)
