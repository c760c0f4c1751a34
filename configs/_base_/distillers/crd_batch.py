# Contrastive representation distillation without a memory bank: the negatives
# are the other samples of the global batch, over all ranks. Nothing is kept of
# a sample, so neither ids nor MemoryBankHook are needed. The weight is that of
# CRD with a bank; InfoNCE needs no constant from the first batch. Labels only
# tell which samples are no negatives; docs/choosing.md has it without them.
model = dict(
    type='crd_plugin.FrozenTeacherDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(
            feat=dict(type='mmrazor.ModuleOutputs', source='neck'),
            labels=dict(type='crd_plugin.SampleField', source='gt_label'),
        ),
        teacher_recorders=dict(feat=dict(type='mmrazor.ModuleOutputs', source='neck')),
        connectors=dict(
            crd_student=dict(type='crd_plugin.EmbeddingConnector'),
            crd_teacher=dict(type='crd_plugin.EmbeddingConnector'),
        ),
        distill_losses=dict(
            loss_crd=dict(
                type='crd_plugin.CRDLoss', negatives='batch', objective='infonce', loss_weight=0.8
            )
        ),
        loss_forward_mappings=dict(
            loss_crd=dict(
                s_feats=dict(
                    recorder='feat', from_student=True, data_idx=-1, connector='crd_student'
                ),
                t_feats=dict(
                    recorder='feat', from_student=False, data_idx=-1, connector='crd_teacher'
                ),
                labels=dict(recorder='labels', from_student=True),
            )
        ),
    ),
)
