"""DINOv3 ViT-S/16, given images of 224x224, and ResNet-18 for CIFAR-100, given 32x32.

The weights are released under a licence that has to be accepted first, at
https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m; save its model.safetensors as below.
"""

_base_ = './resnet50_resnet18_cifar100.py'
pair = dict(
    teacher=dict(
        _delete_=True,
        type='crd_plugin.TimmTeacher',
        model_name='vit_small_patch16_dinov3.lvd1689m',
        pool='cls',
        size=224,
    ),
    teacher_ckpt='weights/vit_small_patch16_dinov3.lvd1689m.safetensors',
)
