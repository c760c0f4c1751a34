"""CRD with a memory bank and InfoNCE, the ablation of the paper (Tian et al., arXiv:1910.10699).

The anchor is told from its negatives by a softmax instead of one by one; all else is as in CRD.
"""

_base_ = './crd.py'
crd = _base_.crd
crd.distiller.distill_losses.loss_crd.objective = 'infonce'
