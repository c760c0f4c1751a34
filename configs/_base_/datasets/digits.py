"""scikit-learn's digits at 16x16: 100 training images, 1,000 test images."""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    # Mean and deviation of all 797 training images at 16x16; the channels are equal.
    mean=[78.0, 78.0, 78.0],
    std=[81.4, 81.4, 81.4],
)

train_pipeline = [
    dict(type='Resize', scale=16),
    # A shift of at most two pixels; flipped digits are other signs.
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=16),
    dict(type='PackInputs'),
]

# Without workers: an image takes a fraction of a millisecond.
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        dataset=dict(
            type='crd_plugin.Digits', split='train', num_train_per_class=10, pipeline=train_pipeline
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type='crd_plugin.Digits', split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
