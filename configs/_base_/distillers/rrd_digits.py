"""RRD on the digits: K / N = 0.32, about as published (16,384 of 50,000)."""

_base_ = './rrd.py'
rrd = dict(distiller=dict(distill_losses=dict(loss_rrd=dict(queue_size=32))))
