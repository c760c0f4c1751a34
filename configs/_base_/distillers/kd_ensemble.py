"""KD from an ensemble: the mean of the teachers' softened probabilities, weights as for one."""

_base_ = './kd.py'
kd = _base_.kd
kd.distiller.distill_losses.loss_kd = dict(type='crd_plugin.EnsembleKDLoss', tau=4, loss_weight=1.0)
kd.distiller.loss_forward_mappings.loss_kd = dict(
    s_feats=dict(recorder='logits', from_student=True),
    t_feats=dict(recorder='logits', from_student=False, record_idx='all'),
)
