"""Contrastive knowledge transfer framework (Zhao et al., arXiv:2303.07599).

The settings are those of kaiqi123/CKTF for CIFAR-100: 0.8 of the objective at the penultimate
layer, 0.1 at the stem and at each stage, whose last blocks are paired. Another `method` than
'last' chooses among the teacher's blocks, which then are all recorded: blocks='all'.
"""

cktf = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(
            stem_stages=dict(type='crd_plugin.StageOutputs', source='backbone', stem=True),
            blocks=dict(type='crd_plugin.BlockOutputs', source='backbone', blocks='last'),
            feat=dict(type='crd_plugin.PenultimateFeature'),
            ids=dict(type='crd_plugin.SampleField', source='sample_idx'),
            labels=dict(type='crd_plugin.SampleField', source='gt_label'),
        ),
        teacher_recorders=dict(
            stem_stages=dict(type='crd_plugin.StageOutputs', source='backbone', stem=True),
            blocks=dict(type='crd_plugin.BlockOutputs', source='backbone', blocks='last'),
            feat=dict(type='crd_plugin.PenultimateFeature'),
        ),
        distill_losses=dict(
            loss_cktf=dict(
                type='crd_plugin.CKTFLoss', beta=0.8, theta=0.1, temperature=0.1, loss_weight=1.0
            )
        ),
        loss_forward_mappings=dict(
            loss_cktf=dict(
                s_stem=dict(recorder='stem_stages', from_student=True, data_idx=0),
                t_stem=dict(recorder='stem_stages', from_student=False, data_idx=0),
                s_blocks=dict(recorder='blocks', from_student=True),
                t_blocks=dict(recorder='blocks', from_student=False),
                s_feats=dict(recorder='feat', from_student=True),
                t_feats=dict(recorder='feat', from_student=False),
                sample_idx=dict(recorder='ids', from_student=True),
                labels=dict(recorder='labels', from_student=True),
            )
        ),
    ),
)
