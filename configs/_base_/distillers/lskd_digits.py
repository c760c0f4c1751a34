"""LSKD on the digits: the classifier starts as torch's layers do, as those of the CIFAR networks.

MMPretrain's heads start with a deviation of 0.01. Logits of so narrow a student are then almost
zero, and the gradient of standardised logits grows as one over their size.
"""

_base_ = './lskd.py'
lskd = dict(architecture=dict(head=dict(init_cfg=None)))
