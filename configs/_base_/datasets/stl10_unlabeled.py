"""STL-10's 100,000 unlabeled images for training, its labeled ones for tests.

Training batches have no class labels: the loss needs `exclude='instance'`, and the accuracy is
meaningful only for a classifier that was trained before.
"""

_base_ = './stl10.py'
train_dataloader = dict(dataset=dict(dataset=dict(split='unlabeled')))
