"""CKTF on the digits: K / N = 0.32, as published (16,384 of 50,000); images of 16x16."""

_base_ = './cktf.py'
cktf = dict(
    input_shape=(3, 16, 16),
    distiller=dict(distill_losses=dict(loss_cktf=dict(num_negatives=32))),
)
