"""ImageNet-1k, with torchvision's transforms so that its weights fit.

Get it from https://image-net.org/challenges/LSVRC/2012 and unpack it as
data/imagenet/{train,val}/<wnid>/*.JPEG (1,000 folders each), or write lists
data/imagenet/meta/{train,val}.txt with lines `<path below the split> <label>`.

Source: HobbitLong/RepDistiller, dataset/imagenet.py @ b84f547.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=1000,
    # RGB: 255 times (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225).
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    # Images are loaded as BGR, by Pillow too.
    to_rgb=True,
)

# torchvision decodes and resizes with Pillow and leaves EXIF flags alone.
load_image = dict(
    type='LoadImageFromFile', imdecode_backend='pillow', color_type='color_ignore_orientation'
)
train_pipeline = [
    load_image,
    dict(type='RandomResizedCrop', scale=224, backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    load_image,
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]

train_dataloader = dict(
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        complete=True,  # False: a part of the images on purpose
        dataset=dict(
            type='ImageNet', data_root='data/imagenet', split='train', pipeline=train_pipeline
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
