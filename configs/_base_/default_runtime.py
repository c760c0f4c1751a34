"""What all runs share: scope, hooks, seed, log."""

default_scope = 'mmpretrain'
custom_imports = dict(imports=['crd_plugin'], allow_failed_imports=False)

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),  # iterations
    param_scheduler=dict(type='ParamSchedulerHook'),
    # Each epoch; the two latest, and the best by top-1.
    checkpoint=dict(
        type='crd_plugin.CheckpointHook',
        interval=1,
        max_keep_ckpts=2,
        save_best='accuracy/top1',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    random_state=dict(type='crd_plugin.RandomStateHook'),
    # Stops at a loss that is NaN.
    finite_loss=dict(type='crd_plugin.FiniteLossHook'),
    # These two do nothing for a model without a memory bank or a key queue.
    memory_bank=dict(type='crd_plugin.MemoryBankHook'),
    cocord=dict(type='crd_plugin.CoCoRDHook'),
    visualization=dict(type='VisualizationHook', enable=False),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)

randomness = dict(seed=0, deterministic=False)
log_level = 'INFO'
load_from = None
resume = False
