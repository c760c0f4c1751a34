"""The 1,000 labeled patches of two photographs, 20 epochs of batches of 50."""

_base_ = ['../default_runtime.py', '../datasets/photos.py', '../schedules/photos_b50-20e.py']
train_dataloader = dict(batch_size=50)
