"""FitNet without labels: weight 1, no cross-entropy; the hint is on the last stage.

Nothing else would train what is behind the hint.
"""

_base_ = './fitnet.py'
fitnet = dict(
    calculate_student_loss=False,
    distiller=dict(
        distill_losses=dict(loss_fitnet=dict(loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_fitnet=dict(s_feats=dict(data_idx=-1), t_feats=dict(data_idx=-1))
        ),
    ),
)
