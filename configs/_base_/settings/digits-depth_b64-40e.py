"""First stage on digits with depth: 40 epochs on all 797 pairs, without their labels."""

_base_ = [
    '../default_runtime.py',
    '../datasets/digits_depth.py',
    '../schedules/fashion-mnist_b64-40e.py',
]
train_dataloader = dict(batch_size=64)
default_hooks = dict(checkpoint=dict(save_best=None))
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
# CRD, AT and FitNet do not train the student's classifier.
find_unused_parameters = True
