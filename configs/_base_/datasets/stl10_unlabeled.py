"""STL-10's 100,000 unlabeled images to train on, its labeled ones to test.

No batch has class labels: the loss needs `exclude='instance'`, and the
accuracy says something only of a classifier that was trained before.
"""

_base_ = './stl10.py'
train_dataloader = dict(dataset=dict(dataset=dict(split='unlabeled')))
