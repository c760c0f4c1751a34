"""Probes of several checkpoints."""

from collections.abc import Sequence
from pathlib import Path

from .arguments import UsageError, check_checkpoint
from .runs import Run, Settings, run_of

RANDOM = 'random'


def plan_probes(
    configs: Sequence[Path], checkpoints: Sequence[str], options: Sequence[str], work_dir: Path
) -> list[Run]:
    """List a run per config and checkpoint, in ``work_dir/<config>/<checkpoint>/seed_<seed>``."""
    named: dict[tuple[str, int], str] = {}
    for checkpoint in dict.fromkeys(checkpoints):
        if checkpoint == RANDOM:
            continue
        check_checkpoint(checkpoint, '--probe')
        name, seed = run_of(checkpoint)
        if (name, seed) in named:
            raise UsageError(
                f'--probe {named[name, seed]} and {checkpoint} are both {name} with seed {seed}; '
                'give one of them.'
            )
        named[name, seed] = checkpoint
    if RANDOM in checkpoints:
        named |= {(RANDOM, seed): 'None' for seed in {seed for _, seed in named} or {0}}
    for path in configs:
        if 'backbone_ckpt' not in Settings(path, options).config.get('model', {}):
            raise UsageError(
                f'--probe: {path} has no model.backbone_ckpt; give configs of a '
                'crd_plugin.LinearProbe, such as configs/transfer/probe_*.py.'
            )
    return [
        Run(
            f'{path.stem} of {name}',
            Settings(path, [*options, f'model.backbone_ckpt={checkpoint}']),
            seed,
            work_dir / path.stem / name / f'seed_{seed}',
        )
        for (name, seed), checkpoint in named.items()
        for path in configs
    ]
