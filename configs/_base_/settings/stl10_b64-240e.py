"""STL-10's 5,000 labeled images at 64x64, 240 epochs of batches of 64."""

_base_ = ['../default_runtime.py', '../datasets/stl10.py', '../schedules/cifar_b64-240e.py']
train_dataloader = dict(batch_size=64)
