"""A first stage of 30 epochs in front of the 40, at the initial learning rate."""

_base_ = './fashion-mnist_b64-40e.py'
train_cfg = dict(
    _delete_=True,
    type='crd_plugin.StagedTrainLoop',
    max_epochs=70,
    stage_epochs=dict(init=30),
    val_interval=5,
)
param_scheduler = dict(begin=30, end=70)
# A stage freezes some parameters; DistributedDataParallel has to be told.
find_unused_parameters = True
