"""KD alone on ImageNet: 0.5 cross-entropy + 0.9 KL, as in HobbitLong/RepDistiller#10."""

_base_ = './kd.py'
kd = dict(alone=dict(student_loss_weight=0.5))
