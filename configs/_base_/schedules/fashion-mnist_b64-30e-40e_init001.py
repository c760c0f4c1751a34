"""The first stage at a learning rate of 0.01: FT, as on CIFAR-100."""

_base_ = './fashion-mnist_b64-30e-40e.py'
param_scheduler = [
    # MMEngine's ConstantLR restores the learning rate in its last step: epoch 31.
    dict(type='ConstantLR', factor=0.2, by_epoch=True, begin=0, end=31),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=30, end=70, convert_to_iter_based=True),
]
