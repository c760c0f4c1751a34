"""All 60,000 images for 12 epochs: the teacher."""

_base_ = './fashion-mnist_b64-40e.py'
train_dataloader = dict(dataset=dict(dataset=dict(num_train_per_class=None)))
param_scheduler = dict(end=12)
train_cfg = dict(max_epochs=12)
