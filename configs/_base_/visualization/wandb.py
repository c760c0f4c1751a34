"""Weights & Biases: `visualizer = dict(vis_backends=[*_base_.vis_backends, _base_.wandb])`."""

wandb = dict(type='WandbVisBackend', init_kwargs=dict(project='crd_plugin'))
