"""KD without labels: weight 1, no cross-entropy; the logits are those of the teacher's classes."""

_base_ = './kd.py'
kd = dict(calculate_student_loss=False, alone=dict(_delete_=True))
