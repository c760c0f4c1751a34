"""Digits, 100 epochs of batches of 20 behind a first stage of 30 epochs: AB."""

_base_ = ['../default_runtime.py', '../datasets/digits.py', '../schedules/digits_b20-30e-100e.py']
train_dataloader = dict(batch_size=20)
