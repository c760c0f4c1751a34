"""Fashion-MNIST, 40 epochs of batches of 64 behind a first stage of 30 epochs: AB, FSP."""

_base_ = [
    '../default_runtime.py',
    '../datasets/fashion_mnist.py',
    '../schedules/fashion-mnist_b64-30e-40e.py',
]
train_dataloader = dict(batch_size=64)
