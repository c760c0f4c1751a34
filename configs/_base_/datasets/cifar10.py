"""CIFAR-10 with the normalisation of the teachers of MMPretrain's zoo.

Get it: unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in data/cifar10/, or train
once, with a network connection, with
`--cfg-options train_dataloader.dataset.dataset.download=True`.
"""

_base_ = './cifar100.py'
data_preprocessor = dict(
    num_classes=10,
    # mmpretrain 1.2.0, _base_/datasets/cifar10_bs16.py; RGB: 255 times (0.4914, 0.4822, 0.4465)
    # and (0.2023, 0.1994, 0.2010).
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
)
train_dataloader = dict(dataset=dict(dataset=dict(type='CIFAR10', data_root='data/cifar10')))
val_dataloader = dict(dataset=dict(type='CIFAR10', data_root='data/cifar10'))
test_dataloader = val_dataloader
