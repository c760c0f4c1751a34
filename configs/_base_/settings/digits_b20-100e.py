"""Digits, 100 epochs of batches of 20."""

_base_ = ['../default_runtime.py', '../datasets/digits.py', '../schedules/digits_b20-100e.py']
train_dataloader = dict(batch_size=20)
