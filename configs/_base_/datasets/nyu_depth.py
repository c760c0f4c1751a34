"""NYU-Depth V2 at 240x320: RGB from 0 to 255 and depth in metres, stacked by channel; 13 classes.

Get it: put nyu_depth_v2_labeled.mat and splits.mat from http://horatio.cs.nyu.edu/mit/silberman/
(nyu_depth_v2/ and indoor_seg_sup/) and both mappings of classes from
https://github.com/ankurhanda/nyuv2-meta-data in data/nyu-depth-v2/. Reading needs h5py.
"""

# Each network has a mean and std of its own.
data_preprocessor = dict(type='ClsDataPreprocessor')

# Half of the recorded size; label maps are resized to the nearest pixel and flipped alike.
resize = dict(type='Resize', scale=(320, 240))
pack = dict(type='PackInputs', algorithm_keys=('gt_seg_map',))
train_pipeline = [resize, dict(type='RandomFlip', prob=0.5, direction='horizontal'), pack]
test_pipeline = [resize, pack]

train_dataloader = dict(
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.SampleIndexDataset',
        complete=True,  # False: a part of the images on purpose
        dataset=dict(
            type='crd_plugin.NYUDepthV2',
            data_root='data/nyu-depth-v2',
            split='train',
            inputs=['rgb', 'depth'],
            mappings=['classMapping40.mat', 'class13Mapping.mat'],
            pipeline=train_pipeline,
        ),
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    dataset=dict(
        type='crd_plugin.NYUDepthV2',
        data_root='data/nyu-depth-v2',
        split='test',
        inputs=['rgb', 'depth'],
        mappings=['classMapping40.mat', 'class13Mapping.mat'],
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='crd_plugin.SegmentationMetric', num_classes=13)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
