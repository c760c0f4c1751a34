"""Configs of CoCoRD for tests."""

from typing import Any

from tests import small_runs

SIZES = dict(hidden_dim=16, embed_dim=8, predictor_dim=4, queue_size=15)


def distiller(source: str = 'neck', **loss: Any) -> dict[str, Any]:
    """Config of CoCoRD on a module's output; arguments go to the loss."""

    def record(from_student: bool, record_idx: int = 0) -> dict[str, Any]:
        return dict(recorder='feat', from_student=from_student, record_idx=record_idx, data_idx=-1)

    recorder = dict(type='mmrazor.ModuleOutputs', source=source)
    return dict(
        type='mmrazor.ConfigurableDistiller',
        student_recorders=dict(feat=dict(recorder)),
        teacher_recorders=dict(feat=dict(recorder)),
        distill_losses=dict(loss_cocord={'type': 'crd_plugin.CoCoRDLoss', **SIZES, **loss}),
        loss_forward_mappings=dict(
            loss_cocord=dict(
                s_feats=record(True, 0),
                s_feats_2=record(True, 1),
                slow_feats_2=record(True, 2),
                slow_feats=record(True, 3),
                t_feats=record(False),
            )
        ),
    )


def model_config(**loss: Any) -> dict[str, Any]:
    """Config of the algorithm; arguments go to the loss."""
    return dict(
        type='crd_plugin.CoCoRDDistill',
        architecture=small_runs.net(6, dropout=0.2),
        teacher=small_runs.net(12),
        input_shape=(3, 8, 8),
        distiller=distiller(**loss),
    )


def run_changes(**loss: Any) -> dict[str, Any]:
    """Changes that make a run of :mod:`tests.small_runs` one of CoCoRD."""
    pipeline = [dict(type='RandomCrop', crop_size=8, padding=1), dict(type='PackInputs')]
    views = dict(type='crd_plugin.MultiViewPipeline', transforms=pipeline)
    return dict(
        model={'_delete_': True, **model_config(**loss)},
        train_dataloader__dataset__dataset__pipeline=[views],
        custom_hooks=[dict(type='crd_plugin.CoCoRDHook', interval=1)],
    )
