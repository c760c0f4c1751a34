"""ImageNet, 100 epochs on 8 GPUs with 32 images each."""

_base_ = ['../default_runtime.py', '../datasets/imagenet.py', '../schedules/imagenet_b256-100e.py']
train_dataloader = dict(batch_size=32)  # per GPU, on eight
