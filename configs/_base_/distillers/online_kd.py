"""On-the-fly native ensemble (Lan, Zhu and Gong, arXiv:1806.04606).

Branches of one network and a gate, without a teacher. The leaf says where the branches start.
"""

online_kd = dict(type='crd_plugin.OnlineEnsembleDistill', num_branches=3, tau=3, kl_weight=1.0)
