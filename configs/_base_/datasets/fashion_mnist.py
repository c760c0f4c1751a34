"""Fashion-MNIST: 5,000 training images, 500 per class as in CIFAR-100; 10,000 test images.

Get it: `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or download the four files of
https://github.com/zalandoresearch/fashion-mnist, data/fashion, to data/fashion-mnist/.
All 60,000 images: `train_dataloader.dataset.dataset.num_train_per_class=None`. To choose
hyperparameters, validate on images of the training set: `val_dataloader.dataset.split=holdout`.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    # Mean and deviation of the 60,000 training images; the channels are equal.
    mean=[72.94, 72.94, 72.94],
    std=[90.02, 90.02, 90.02],
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=28, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

# Without workers: an image takes a fraction of a millisecond.
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        dataset=dict(
            type='crd_plugin.FashionMNIST',
            split='train',
            num_train_per_class=500,
            pipeline=train_pipeline,
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type='crd_plugin.FashionMNIST', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
