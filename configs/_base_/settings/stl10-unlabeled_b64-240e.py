"""First stage of transfer to STL-10: 240 epochs on its 100,000 unlabeled images.

Source: kaiqi123/CKTF, scripts/run_transfer_from_tinyimagenet_to_stl10.sh @ b2bba29. There the
student is tested on STL-10 with its classifier of Tiny-ImageNet, and the epoch with the best of
these meaningless figures goes into the second stage; here it is the last epoch.
"""

_base_ = [
    '../default_runtime.py',
    '../datasets/stl10_unlabeled.py',
    '../schedules/cifar_b64-240e.py',
]
train_dataloader = dict(batch_size=64)
default_hooks = dict(checkpoint=dict(save_best=None))
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
# CRD and CKTF do not train the student's classifier.
find_unused_parameters = True
