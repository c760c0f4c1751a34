"""CKTF beside another method, each stage of the student paired with the least similar block.

Source: kaiqi123/CKTF, scripts/run_2kds.sh @ b2bba29, with FitNet, AT, SP, CC, VID, RKD and PKT.
"""

_base_ = './cktf_second.py'
cktf = dict(
    distiller=dict(
        teacher_recorders=dict(blocks=dict(blocks='all')),
        distill_losses=dict(loss_cktf=dict(method='smallest')),
    )
)
