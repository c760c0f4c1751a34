"""Second stage on NYU-Depth: the student and a head for segmentation, on depth, with labels."""

_base_ = [
    '../default_runtime.py',
    '../datasets/nyu_depth.py',
    '../schedules/nyu-depth_b16-200e.py',
]
# In metres; those of the student in _base_/pairs/resnet18_conv5_nyu-depth.py.
data_preprocessor = dict(mean=[2.8], std=[1.4])
train_dataloader = dict(batch_size=16, dataset=dict(dataset=dict(inputs=['depth'])))
val_dataloader = dict(dataset=dict(inputs=['depth']))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(save_best='segmentation/mean_iou'))
model = dict(
    type='ImageClassifier',
    backbone=dict(type='crd_plugin.PlainConvNet', out_indices=(1, 2, 3, 4)),
    head=dict(type='crd_plugin.SegmentationHead', in_channels=512, num_classes=13),
)
