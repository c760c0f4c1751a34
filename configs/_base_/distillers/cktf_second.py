"""CKTF beside another method: one weight, 0.8, for all levels.

Source: kaiqi123/CKTF, scripts/run_2kds.sh @ b2bba29, with AB, FT and NST.
"""

_base_ = './cktf.py'
cktf = dict(
    distiller=dict(distill_losses=dict(loss_cktf=dict(beta=1.0, theta=1.0, loss_weight=0.8)))
)
