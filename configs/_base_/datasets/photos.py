"""Patches of two photographs in STL-10's files, at 32x32: docs/examples/make_photos.py."""

_base_ = './stl10.py'
train_pipeline = [
    dict(type='RandomResizedCrop', scale=32, crop_ratio_range=(0.3, 1.0), backend='pillow'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='Resize', scale=32, backend='pillow'), dict(type='PackInputs')]
train_dataloader = dict(
    # Without workers: an image takes a fraction of a millisecond.
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        complete=False,  # fewer than STL-10 has
        dataset=dict(data_root='data/photos', pipeline=train_pipeline),
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(data_root='data/photos', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
