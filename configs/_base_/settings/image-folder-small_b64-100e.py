"""A folder of small images per class, in the way of CIFAR-100: resized, shifted, mirrored.

Learning rate and weight decay are those of the CRD paper on CIFAR-100, 0.05 for 64 images.
"""

_base_ = './image-folder_b64-100e.py'

train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            pipeline=[
                dict(type='LoadImageFromFile', imdecode_backend='pillow'),
                dict(type='Resize', scale=32, backend='pillow'),
                dict(type='RandomCrop', crop_size=32, padding=4),
                dict(type='RandomFlip', prob=0.5, direction='horizontal'),
                dict(type='PackInputs'),
            ],
        )
    )
)
val_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile', imdecode_backend='pillow'),
            dict(type='Resize', scale=32, backend='pillow'),
            dict(type='PackInputs'),
        ]
    )
)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=0.05, weight_decay=5e-4))
