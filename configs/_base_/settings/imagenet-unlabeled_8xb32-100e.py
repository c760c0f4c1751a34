"""ImageNet's training images as a folder without labels, 100 epochs on 8 GPUs with 32 each."""

_base_ = './imagenet_8xb32-100e.py'
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='CustomDataset',
            data_root='data/imagenet',
            data_prefix='train',
            with_label=False,
            pipeline=_base_.train_pipeline,
        )
    )
)
default_hooks = dict(checkpoint=dict(save_best=None))
val_cfg = None
val_dataloader = None
val_evaluator = None
test_cfg = None
test_dataloader = None
test_evaluator = None
# The student's classifier is not trained.
find_unused_parameters = True
