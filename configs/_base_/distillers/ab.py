"""Activation boundaries (Heo et al., arXiv:1811.03233) as in HobbitLong/RepDistiller.

30 epochs of this loss alone on the student's stages before their last activation, weight 1, then
plain cross-entropy. It needs a schedule with a first stage: take settings/*_b64-30e-240e.py.
"""

ab = dict(
    type='crd_plugin.StagedDistill',
    stages=[
        dict(
            name='init',
            losses=['loss_ab'],
            student_loss=False,
            trainable=['architecture.backbone', 'distiller.distill_losses.loss_ab'],
        ),
        dict(name='main', without_losses=['loss_ab'], frozen=['distiller.distill_losses.loss_ab']),
    ],
    architecture=dict(backbone=dict(pre_activation=True)),
    teacher=dict(backbone=dict(pre_activation=True)),
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_ab=dict(type='crd_plugin.ABLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_ab=dict(
                s_feats=dict(recorder='stages', from_student=True),
                t_feats=dict(recorder='stages', from_student=False),
            )
        ),
    ),
)
