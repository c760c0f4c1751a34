"""The same with three views of each training image: CoCoRD."""

_base_ = './fashion-mnist_b64-40e.py'
views = dict(type='crd_plugin.MultiViewPipeline', transforms=_base_.train_pipeline)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=[views])))
