"""CIFAR-10 as the teachers of mmpretrain's zoo saw it.

Get it: unpack https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in
data/cifar10/, or train once, with a network connection, with
`--cfg-options train_dataloader.dataset.dataset.download=True`.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    # Of mmpretrain 1.2.0, _base_/datasets/cifar10_bs16.py, RGB: 255 times
    # (0.4914, 0.4822, 0.4465) and (0.2023, 0.1994, 0.2010).
    mean=[125.307, 122.961, 113.8575],
    std=[51.5865, 50.847, 51.255],
    # They are stored in this order.
    to_rgb=False,
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=16,  # a GPU; its recipe has eight
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        dataset=dict(
            type='CIFAR10',
            data_root='data/cifar10',
            split='train',
            # Without a network it would only fail later and less clearly.
            download=False,
            pipeline=train_pipeline,
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='CIFAR10',
        data_root='data/cifar10',
        split='test',
        download=False,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
