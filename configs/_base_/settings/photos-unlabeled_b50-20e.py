"""The 1,000 unlabeled patches of two photographs, 20 epochs of batches of 50."""

_base_ = './photos_b50-20e.py'
train_dataloader = dict(dataset=dict(dataset=dict(split='unlabeled')))
default_hooks = dict(checkpoint=dict(save_best=None))
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
# Some methods do not train the student's classifier.
find_unused_parameters = True
