"""First stage on NYU-Depth: 200 epochs on the paired images, without their labels."""

_base_ = [
    '../default_runtime.py',
    '../datasets/nyu_depth.py',
    '../schedules/nyu-depth_b16-200e.py',
]
train_dataloader = dict(batch_size=16)
default_hooks = dict(checkpoint=dict(save_best=None))
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
# CRD, AT and FitNet do not train the student's classifier.
find_unused_parameters = True
