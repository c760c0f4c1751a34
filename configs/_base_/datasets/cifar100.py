"""CIFAR-100 as in HobbitLong/RepDistiller, dataset/cifar100.py @ b84f547.

Get it: unpack https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz in data/cifar100/, or train
once, with a network connection, with
`--cfg-options train_dataloader.dataset.dataset.download=True`.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=100,
    # RGB: 255 times (0.5071, 0.4867, 0.4408) and (0.2675, 0.2565, 0.2761).
    mean=[129.3105, 124.1085, 112.404],
    std=[68.2125, 65.4075, 70.4055],
    # The images are stored in this order.
    to_rgb=False,
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        complete=True,  # False: a part of the images on purpose
        dataset=dict(
            type='CIFAR100',
            data_root='data/cifar100',
            split='train',
            # Without a network connection, a download fails later and less clearly.
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
        type='CIFAR100',
        data_root='data/cifar100',
        split='test',
        download=False,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
