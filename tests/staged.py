"""Small staged runs for the tests of the loop, in one process and in two."""

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from tests import small_runs
from tests.config_files import BASE, parsed

# Two epochs of four iterations a stage.
INIT, EPOCHS, STEPS = 2, 4, small_runs.STEPS
# In another order than the optimizer's epochs would have it.
SCHEDULE = [
    dict(type='ConstantLR', factor=0.2, begin=0, end=INIT + 1),
    dict(type='MultiStepLR', milestones=[INIT + 1], gamma=0.1),
]


def model(method: str, with_crd: bool = True, **changes: Any) -> dict:
    """Config of AB (``'ab'``) or FT (``'ft'``) on the tiny networks, with CRD beside it."""
    fragment = parsed(BASE / 'distillers' / f'{method}.py')[method].to_dict()
    distiller = small_runs.distiller()
    if not with_crd:
        for part in ('recorders', 'losses', 'mappings', 'connectors'):
            distiller.update({key: {} for key in distiller if key.endswith(part)})
    for part in fragment['distiller'].keys() - {'type'}:
        distiller[part].update(fragment['distiller'][part])
    del distiller['distill_losses'][f'loss_{method}']['loss_weight']  # which is for larger networks
    if method == 'ab':  # the one stage of these networks, by itself
        for record in distiller['loss_forward_mappings']['loss_ab'].values():
            record['data_idx'] = 0
    # As MMEngine sorts the keys of a config that it writes.
    distiller['distill_losses'] = dict(sorted(distiller['distill_losses'].items()))
    networks = small_runs.model()
    for role in ('architecture', 'teacher'):  # AB compares signs
        networks[role]['backbone']['activated'] = method != 'ab'
    return {
        **networks,
        'type': 'crd_plugin.StagedDistill',
        'stages': fragment['stages'],
        'distiller': distiller,
        **changes,
    }


def settings(method: str = 'ab', **changes: Any) -> dict[str, Any]:
    """Changes that make a config of ``small_runs.config`` a staged one, and more of them."""
    loop = dict(type='crd_plugin.StagedTrainLoop', max_epochs=EPOCHS, stage_epochs=dict(init=INIT))
    staged = dict(
        model={**model(method), '_delete_': True},
        train_cfg=dict(loop, _delete_=True),
        param_scheduler=SCHEDULE,
        find_unused_parameters=True,
    )
    return {**staged, **changes}


class Snapshots(Hook):
    """Keeps the weights before training and after each epoch."""

    priority = 'LOWEST'

    def __init__(self) -> None:
        self.states = []

    def before_train(self, runner) -> None:
        module = getattr(runner.model, 'module', runner.model)
        self.states.append({k: v.clone() for k, v in module.state_dict().items()})

    after_train_epoch = before_train


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Equal in every bit; a constant of a bank that is not set is NaN."""
    return first.numpy().tobytes() == second.numpy().tobytes()


def changed(before: dict, after: dict, prefix: str = '') -> set:
    """Names below a prefix whose values differ."""
    return {
        name for name in before if name.startswith(prefix) and not same(before[name], after[name])
    }


def work(rank: int, folder: str) -> None:
    """Entry point of one of two processes."""
    with small_runs.process_group(rank, folder) as result:
        for method in ('ab', 'ft'):
            spy = Snapshots()
            small_runs.train(
                Path(folder, method),
                spy,
                launcher='pytorch',
                default_hooks__checkpoint=None,
                **settings(method),
            )
            result[method] = spy.states
        changes = settings(find_unused_parameters=False)
        try:
            small_runs.train(Path(folder, 'refused'), launcher='pytorch', **changes)
        except ValueError as error:
            result['refused'] = str(error)
