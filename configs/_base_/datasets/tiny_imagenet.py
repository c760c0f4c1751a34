"""Tiny-ImageNet-200 as in kaiqi123/CKTF, dataset/imagenet.py @ b2bba29.

Get it: unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip in data/.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=200,
    # RGB, those of ImageNet, as published.
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # Images are loaded as BGR, by Pillow too.
    to_rgb=True,
)

# Pillow, as torchvision. The images are 64x64, so resizing and central crop of the published test
# transform change nothing.
load_image = dict(type='LoadImageFromFile', imdecode_backend='pillow')
train_pipeline = [
    load_image,
    dict(type='RandomResizedCrop', scale=64, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [load_image, dict(type='PackInputs')]

train_dataloader = dict(
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        complete=True,  # False: a part of the images on purpose
        dataset=dict(
            type='crd_plugin.TinyImageNet200',
            data_root='data/tiny-imagenet-200',
            split='train',
            pipeline=train_pipeline,
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.TinyImageNet200',
        data_root='data/tiny-imagenet-200',
        split='val',
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
