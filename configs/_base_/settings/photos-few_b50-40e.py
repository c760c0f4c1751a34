"""100 labeled patches of two photographs, 40 epochs of batches of 50."""

_base_ = './photos_b50-20e.py'
train_dataloader = dict(dataset=dict(dataset=dict(indices=100)))
param_scheduler = dict(end=40)
train_cfg = dict(max_epochs=40, val_interval=20)
