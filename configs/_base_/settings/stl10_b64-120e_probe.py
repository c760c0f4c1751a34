"""STL-10's 5,000 labeled images at 32x32, for a linear probe of networks trained on CIFAR-100."""

_base_ = [
    '../default_runtime.py',
    '../datasets/stl10.py',
    '../schedules/probe_b64-120e.py',
]
# Those of CIFAR-100 in RGB, with which the networks were trained.
data_preprocessor = dict(mean=[129.3105, 124.1085, 112.404], std=[68.2125, 65.4075, 70.4055])
# Pillow, as torchvision; crops as on CIFAR.
train_pipeline = [
    dict(type='Resize', scale=32, backend='pillow'),
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='Resize', scale=32, backend='pillow'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=64, dataset=dict(dataset=dict(pipeline=train_pipeline)))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
