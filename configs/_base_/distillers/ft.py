"""Factor transfer (Kim et al., arXiv:1802.04977) as in HobbitLong/RepDistiller.

30 epochs of the paraphraser alone, which learns to reconstruct the teacher's last map, then
cross-entropy + 200 times the difference of factors. It needs a schedule with a first stage: take
settings/*_b64-30e-240e_init001.py for ResNet and WRN students.
"""

ft = dict(
    type='crd_plugin.StagedDistill',
    stages=[
        dict(
            name='init',
            losses=dict(loss_ft='reconstruction'),
            student_loss=False,
            trainable=['distiller.distill_losses.loss_ft.paraphraser'],
        ),
        dict(name='main', frozen=['distiller.distill_losses.loss_ft.paraphraser']),
    ],
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        teacher_recorders=dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')),
        distill_losses=dict(loss_ft=dict(type='crd_plugin.FTLoss', loss_weight=200.0)),
        loss_forward_mappings=dict(
            loss_ft=dict(
                s_feats=dict(recorder='stages', from_student=True, data_idx=-1),
                t_feats=dict(recorder='stages', from_student=False, data_idx=-1),
            )
        ),
    ),
)
