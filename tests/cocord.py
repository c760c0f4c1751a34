"""Configs of CoCoRD for tests."""

from typing import Any

from mmengine.config import Config

from crd_plugin.fragments import join
from tests import small_runs

SIZES = dict(hidden_dim=16, embed_dim=8, predictor_dim=4, queue_size=15)
NETWORKS = dict(
    architecture=small_runs.net(6, dropout=0.2), teacher=small_runs.net(12), input_shape=(3, 8, 8)
)


def model_config(networks: dict = NETWORKS, *others: dict, **loss: Any) -> dict[str, Any]:
    """Config of the algorithm, with other methods if wanted; arguments go to the loss."""
    own = Config.fromfile(small_runs.REPO / 'configs/_base_/distillers/cocord.py').cocord
    own.distiller.distill_losses.loss_cocord.update({**SIZES, **loss})
    return join(networks, own, *others).to_dict()


def run_changes(**loss: Any) -> dict[str, Any]:
    """Changes that make a run of :mod:`tests.small_runs` one of CoCoRD."""
    pipeline = [dict(type='RandomCrop', crop_size=8, padding=1), dict(type='PackInputs')]
    views = dict(type='crd_plugin.MultiViewPipeline', transforms=pipeline)
    return dict(
        model={'_delete_': True, **model_config(**loss)},
        train_dataloader__dataset__dataset__pipeline=[views],
        custom_hooks=[dict(type='crd_plugin.CoCoRDHook', interval=1)],
    )
