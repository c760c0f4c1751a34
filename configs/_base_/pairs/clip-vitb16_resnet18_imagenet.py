"""Image tower of OpenAI's CLIP ViT-B/16, without its projection, and ResNet-18 for ImageNet."""

_base_ = './dinov2-vits14_resnet18_imagenet.py'
pair = dict(
    teacher=dict(model_name='vit_base_patch16_clip_quickgelu_224.openai'),
    # OpenAI's own file is a TorchScript archive, which holds code.
    teacher_ckpt='https://huggingface.co/timm/vit_base_patch16_clip_224.openai/resolve/main/'
    'model.safetensors',
)
