_base_ = [
    '../../configs/_base_/settings/imagenet_8xb32-100e.py',
    '../../configs/_base_/pairs/resnet34_resnet18_imagenet.py',
    '../../configs/_base_/distillers/crd.py',
]
from crd_plugin.fragments import join

model = join(_base_.pair, _base_.crd)
model.architecture.head.num_classes = 5
model.teacher.head.num_classes = 5
model.teacher_ckpt = 'work_dirs/my_teacher/epoch_100.pth'
# About a third of the training images, at most 16384.
model.distiller.distill_losses.loss_crd.num_negatives = 300

# data/flowers/train/<class>/*.jpg and data/flowers/val/<class>/*.jpg
data_preprocessor = dict(num_classes=5)
train_dataloader = dict(
    dataset=dict(
        dataset=dict(
            _delete_=True,
            type='CustomDataset',
            data_root='data/flowers',
            data_prefix='train',
            pipeline=_base_.train_pipeline,
        )
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='CustomDataset',
        data_root='data/flowers',
        data_prefix='val',
        pipeline=_base_.test_pipeline,
    )
)
test_dataloader = val_dataloader
# One GPU with batches of 32 instead of eight: an eighth of the learning rate.
optim_wrapper = dict(optimizer=dict(lr=0.0125))
auto_scale_lr = dict(base_batch_size=32)
