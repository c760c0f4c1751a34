"""STL-10's 5,000 labeled images at 64x64, the size of Tiny-ImageNet.

Get it: unpack http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz in data/.
Source: kaiqi123/CKTF, dataset/stl10.py @ b2bba29.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=10,
    # RGB, those of ImageNet, as published and as the teachers were trained.
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # The images are stored in this order.
    to_rgb=False,
)

# Pillow, as torchvision.
train_pipeline = [
    dict(type='RandomResizedCrop', scale=64, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=64, backend='pillow'),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        complete=True,  # False: a part of the images on purpose
        dataset=dict(
            type='crd_plugin.STL10',
            data_root='data/stl10_binary',
            split='train',
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
        type='crd_plugin.STL10', data_root='data/stl10_binary', split='test', pipeline=test_pipeline
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
