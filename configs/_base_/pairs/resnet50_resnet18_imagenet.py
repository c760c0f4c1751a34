"""ResNet-50 of MMPretrain's zoo and ResNet-18 for ImageNet."""

_base_ = './resnet34_resnet18_imagenet.py'
pair = dict(
    teacher=dict(backbone=dict(depth=50), head=dict(in_channels=2048)),
    teacher_ckpt='https://download.openmmlab.com/mmclassification/v0/resnet/'
    'resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    published=dict(
        # Embeddings of 256 dimensions instead of 128.
        loss_crd=dict(
            distiller=dict(
                connectors=dict(crd_student=dict(embed_dim=256), crd_teacher=dict(embed_dim=256)),
                distill_losses=dict(loss_crd=dict(embed_dim=256)),
            )
        )
    ),
)
