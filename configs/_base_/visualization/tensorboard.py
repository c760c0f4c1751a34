"""TensorBoard: `visualizer = dict(vis_backends=[*_base_.vis_backends, _base_.tensorboard])`."""

tensorboard = dict(type='TensorboardVisBackend')
