"""A first stage of 30 epochs in front of the 100, at the initial learning rate."""

_base_ = './digits_b20-100e.py'
train_cfg = dict(
    _delete_=True,
    type='crd_plugin.StagedTrainLoop',
    max_epochs=130,
    stage_epochs=dict(init=30),
    val_interval=1,
)
param_scheduler = dict(begin=30, end=130)
# A stage freezes some parameters; DistributedDataParallel has to be told.
find_unused_parameters = True
