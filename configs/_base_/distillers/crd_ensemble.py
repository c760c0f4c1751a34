"""CRD from an ensemble of teachers (figure 4 of the paper): one bank and two connectors for each.

beta, the weight of each teacher's term, is that of CRD from one teacher.
"""

_base_ = './crd.py'
crd = _base_.crd
crd.distiller.pop('connectors')
crd.distiller.distill_losses.loss_crd.type = 'crd_plugin.EnsembleCRDLoss'
crd.distiller.loss_forward_mappings.loss_crd.s_feats.pop('connector')
crd.distiller.loss_forward_mappings.loss_crd.t_feats.pop('connector')
crd.distiller.loss_forward_mappings.loss_crd.t_feats.record_idx = 'all'
