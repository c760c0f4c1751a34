"""Arguments of the tools that compare students with their teacher."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from . import arguments as cli

# Name, seed, checkpoint, and the key of the network in the model's config.
Network = tuple[str, int, str, str]


def read_arguments(
    description: str | None, argv: Sequence[str] | None, out: str, what: str
) -> tuple[Path, Config, list[Network]]:
    """Parse ``CONFIG CHECKPOINT... --out OUT``; return OUT, config and networks, teacher first."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help='of a distillation; its teacher_ckpt is the teacher')
    students = "checkpoints of CONFIG's student, trained with any method or alone"
    add('checkpoints', nargs='+', metavar='CHECKPOINT', help=students)
    add('--out', type=Path, required=True, metavar=out, help=what)
    cli.add_options(parser)
    args = parser.parse_args(argv)
    for checkpoint in args.checkpoints:
        cli.check_checkpoint(checkpoint, 'CHECKPOINT')
    cfg = cli.load_config(args.config)
    cli.merge_options(cfg, args.cfg_options)
    teacher = cfg.model.get('teacher_ckpt')
    if not teacher:
        raise cli.UsageError(
            f'CONFIG {args.config} has no model.teacher_ckpt; give the config of a distillation, '
            'or --cfg-options model.teacher_ckpt=FILE.'
        )
    cli.check_checkpoint(teacher, 'model.teacher_ckpt')
    networks = [('teacher', 0, teacher, 'teacher')]
    networks += [(*name_of(path), path, 'architecture') for path in args.checkpoints]
    labels = [network[:2] for network in networks]
    for label in labels:
        if labels.count(label) > 1:
            raise cli.UsageError(
                f'two CHECKPOINTs are {label[0]} with seed {label[1]}, by their folders; give one.'
            )
    return args.out, cfg, networks


def name_of(checkpoint: str) -> tuple[str, int]:
    """Return method and seed by the folder of a checkpoint, as demo.py and run_table.py name it."""
    folder = Path(checkpoint).resolve().parent
    for pattern, text in (
        (r'(.+)_seed(\d+)', folder.name),
        (r'(.+)/seed_(\d+)', '/'.join(folder.parts[-2:])),
    ):
        match = re.fullmatch(pattern, text)
        if match:
            return match[1], int(match[2])
    return folder.name, 0
