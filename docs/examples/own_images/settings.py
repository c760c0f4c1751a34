"""Images of a folder: data, schedule, hooks."""

_base_ = 'crd_plugin::_base_/settings/imagenet_8xb32-100e.py'

root, num_classes, image_size, epochs = 'data/textures', 4, 64, 10
_base_.train_pipeline[1].scale = image_size  # RandomResizedCrop
_base_.test_pipeline[1].scale = image_size * 8 // 7  # ResizeEdge
_base_.test_pipeline[2].crop_size = image_size  # CenterCrop

data_preprocessor = dict(num_classes=num_classes)
train_dataloader = dict(
    num_workers=2,
    dataset=dict(  # crd_plugin.SampleIndexDataset, around:
        dataset=dict(
            _delete_=True,
            type='CustomDataset',
            data_root=root,
            data_prefix='train',
            pipeline=_base_.train_pipeline,
        )
    ),
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root=root,
        data_prefix='val',
        pipeline=_base_.test_pipeline,
    )
)
val_evaluator = dict(topk=1)
test_dataloader, test_evaluator = val_dataloader, val_evaluator

# 0.1 for batches of 256; here they have 32.
optim_wrapper = dict(optimizer=dict(lr=0.1 * 32 / 256))
auto_scale_lr = dict(base_batch_size=32)
param_scheduler = dict(milestones=[epochs * 6 // 10, epochs * 9 // 10])
train_cfg = dict(max_epochs=epochs)
