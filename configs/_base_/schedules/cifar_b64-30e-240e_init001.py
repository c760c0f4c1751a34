"""The first stage at a learning rate of 0.01: FT on ResNet and WRN students.

Source: HobbitLong/RepDistiller, helper/pretrain.py @ b84f547.
"""

_base_ = './cifar_b64-30e-240e.py'
param_scheduler = [
    # MMEngine's ConstantLR restores the learning rate in its last step: epoch 31.
    dict(type='ConstantLR', factor=0.2, by_epoch=True, begin=0, end=31),
    dict(type='MultiStepLR', by_epoch=True, milestones=[180, 210, 240], gamma=0.1),
]
