"""Fashion-MNIST, 40 epochs of batches of 64 on 500 images per class: students."""

_base_ = [
    '../default_runtime.py',
    '../datasets/fashion_mnist.py',
    '../schedules/fashion-mnist_b64-40e.py',
]
train_dataloader = dict(batch_size=64)
