"""Digits, with a first stage of 30 epochs at a learning rate of 0.01: FT."""

_base_ = [
    '../default_runtime.py',
    '../datasets/digits.py',
    '../schedules/digits_b20-30e-100e_init001.py',
]
train_dataloader = dict(batch_size=20)
