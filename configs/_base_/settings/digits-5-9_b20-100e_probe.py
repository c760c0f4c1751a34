"""The digits 5 to 9, for a linear probe of networks trained on the digits 0 to 4."""

_base_ = './digits_b20-100e.py'
train_dataloader = dict(dataset=dict(dataset=dict(digits=[5, 6, 7, 8, 9])))
val_dataloader = dict(dataset=dict(digits=[5, 6, 7, 8, 9]))
test_dataloader = dict(dataset=dict(digits=[5, 6, 7, 8, 9]))
