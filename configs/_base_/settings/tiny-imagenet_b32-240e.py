"""The same in batches of 32: NST. Source: kaiqi123/CKTF, scripts/run_tiny-imagenet_distill.sh."""

_base_ = './tiny-imagenet_b64-240e.py'
train_dataloader = dict(batch_size=32)
auto_scale_lr = dict(base_batch_size=32)
