"""STL-10's 5,000 labeled images at 64x64, for probing and finetuning networks of that size."""

_base_ = ['../default_runtime.py', '../datasets/stl10.py', '../schedules/probe_b64-120e.py']
train_dataloader = dict(batch_size=64)
