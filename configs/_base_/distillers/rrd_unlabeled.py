"""RRD without labels: no cross-entropy."""

_base_ = './rrd.py'
rrd = dict(calculate_student_loss=False)
