"""Fashion-MNIST, with a first stage of 30 epochs at a learning rate of 0.01: FT."""

_base_ = [
    '../default_runtime.py',
    '../datasets/fashion_mnist.py',
    '../schedules/fashion-mnist_b64-30e-40e_init001.py',
]
train_dataloader = dict(batch_size=64)
