"""scikit-learn's digits in the files of NYU-Depth, "depth" being where the grey level changes.

Make them: python docs/examples/depth/make_digits_depth.py. Classes are the ten digits on pixels of
strokes, and the background.
"""

data_preprocessor = dict(type='ClsDataPreprocessor')

pack = dict(type='PackInputs', algorithm_keys=('gt_seg_map',))
dataset = dict(
    type='crd_plugin.NYUDepthV2',
    data_root='data/digits-depth',
    inputs=['rgb', 'depth'],
    mappings=['classMapping40.mat'],
    pipeline=[pack],
)
train_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(type='crd_plugin.SampleIndexDataset', dataset=dict(dataset, split='train')),
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=250,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(dataset, split='test'),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='crd_plugin.SegmentationMetric', num_classes=11)
test_dataloader = val_dataloader
test_evaluator = val_evaluator
