"""Second stage on digits with depth: segmentation on depth alone, with 100 labeled images."""

_base_ = [
    '../default_runtime.py',
    '../datasets/digits_depth.py',
    '../schedules/digits_b20-100e.py',
]
data_preprocessor = dict(mean=[1.0], std=[1.0])
train_dataloader = dict(batch_size=20, dataset=dict(dataset=dict(inputs=['depth'], indices=100)))
val_dataloader = dict(dataset=dict(inputs=['depth']))
test_dataloader = val_dataloader
train_cfg = dict(val_interval=10)
default_hooks = dict(checkpoint=dict(save_best='segmentation/mean_iou'))
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='crd_plugin.PlainConvNet',
        widths=(16, 32, 32, 64, 64),
        strides=(1, 2, 1, 1, 1),
        out_indices=(0, 2, 4),
    ),
    head=dict(
        type='crd_plugin.SegmentationHead', in_channels=64, num_classes=11, hidden_channels=64
    ),
)
