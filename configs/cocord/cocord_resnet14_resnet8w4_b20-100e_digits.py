_base_ = [
    '../_base_/default_runtime.py',
    '../_base_/datasets/digits.py',
    '../_base_/schedules/digits_b20-100e.py',
    '../_base_/pairs/resnet14_resnet8w4_digits.py',
    '../_base_/distillers/cocord.py',
]
# Of 100 images, 40 in the queue; as wide as the teacher's feature.
loss = dict(hidden_dim=64, embed_dim=64, predictor_dim=16, queue_size=40)
model = dict(
    architecture=_base_.student,
    teacher=_base_.teacher,
    teacher_ckpt=_base_.teacher_ckpt,
    distiller=dict(distill_losses=dict(loss_cocord=loss)),
)
views = dict(type='crd_plugin.MultiViewPipeline', transforms=_base_.train_pipeline)
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=[views])))
