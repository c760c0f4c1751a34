"""Flow of the solution procedure (Yim et al., CVPR 2017) as in HobbitLong/RepDistiller.

30 epochs of this loss alone on the student's stem and stages, then plain cross-entropy. The
published weight of 50 belongs to the second stage, where this loss is not used; in the first it is
1. It needs a schedule with a first stage, settings/*_b64-30e-240e.py, and a pair with equal
channels stage by stage.
"""

fsp = dict(
    type='crd_plugin.StagedDistill',
    stages=[
        dict(
            name='init',
            losses=['loss_fsp'],
            student_loss=False,
            trainable=['architecture.backbone'],
        ),
        dict(name='main', without_losses=['loss_fsp']),
    ],
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        # Not named `stages`: with the stem in front, the indices are different.
        student_recorders=dict(
            stem_stages=dict(type='crd_plugin.StageOutputs', source='backbone', stem=True)
        ),
        teacher_recorders=dict(
            stem_stages=dict(type='crd_plugin.StageOutputs', source='backbone', stem=True)
        ),
        distill_losses=dict(loss_fsp=dict(type='crd_plugin.FSPLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_fsp=dict(
                s_feats=dict(recorder='stem_stages', from_student=True),
                t_feats=dict(recorder='stem_stages', from_student=False),
            )
        ),
    ),
)
