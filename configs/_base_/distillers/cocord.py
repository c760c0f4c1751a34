# Contrastive consistent representation distillation (Fu et al., BMVC 2023)
# with the published settings of ShipengFu/CoCoRD, on the penultimate features.
# It wants three views of each image: the leaf wraps its training pipeline in
# a crd_plugin.MultiViewPipeline.
model = dict(
    type='crd_plugin.CoCoRDDistill',
    distiller=dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(type='mmrazor.ModuleOutputs', source='neck')),
        teacher_recorders=dict(feat=dict(type='mmrazor.ModuleOutputs', source='neck')),
        distill_losses=dict(loss_cocord=dict(type='crd_plugin.CoCoRDLoss', loss_weight=1.0)),
        loss_forward_mappings=dict(
            loss_cocord=dict(
                # Of the student the first and the second view, of the slow
                # student the second and the first.
                s_feats=dict(recorder='feat', from_student=True, record_idx=0, data_idx=-1),
                s_feats_2=dict(recorder='feat', from_student=True, record_idx=1, data_idx=-1),
                slow_feats_2=dict(recorder='feat', from_student=True, record_idx=2, data_idx=-1),
                slow_feats=dict(recorder='feat', from_student=True, record_idx=3, data_idx=-1),
                t_feats=dict(recorder='feat', from_student=False, data_idx=-1),
            )
        ),
    ),
)
custom_hooks = [dict(type='crd_plugin.CoCoRDHook')]
