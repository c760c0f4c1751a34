"""A first stage of 30 epochs in front of the 240: AB, FT and FSP.

The learning rate is constant in the first stage. Source: HobbitLong/RepDistiller,
helper/pretrain.py and train_student.py @ b84f547. FT on ResNet and WRN students takes
cifar_b64-30e-240e_init001.py.
"""

_base_ = './cifar_b64-240e.py'
train_cfg = dict(
    _delete_=True,
    type='crd_plugin.StagedTrainLoop',
    max_epochs=270,
    stage_epochs=dict(init=30),
    val_interval=1,
)
param_scheduler = dict(milestones=[180, 210, 240])
# A stage freezes some parameters; DistributedDataParallel has to be told.
find_unused_parameters = True
