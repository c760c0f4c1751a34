"""Arguments of the tools that compare students with their teacher."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from . import arguments as cli
from .runs import name_checkpoints

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
    cfg = cli.load_config(args.config)
    cli.merge_options(cfg, args.cfg_options)
    teacher = cfg.model.get('teacher_ckpt')
    if not teacher:
        raise cli.UsageError(
            f'CONFIG {args.config} has no model.teacher_ckpt; give the config of a distillation, '
            'or --cfg-options model.teacher_ckpt=FILE.'
        )
    if not isinstance(teacher, str):
        raise cli.UsageError(
            f'CONFIG {args.config} has a list of {len(teacher)} in model.teacher_ckpt, expected '
            'one file; give the config of a distillation with one teacher.'
        )
    cli.check_checkpoint(teacher, 'model.teacher_ckpt')
    named = name_checkpoints('CHECKPOINT', args.checkpoints)
    for (name, _), checkpoint in named.items():
        if name == 'teacher':
            raise cli.UsageError(
                f'CHECKPOINT {checkpoint} would be shown as the teacher, by the name of its folder '
                'or file; rename that.'
            )
    networks = [(*run, checkpoint, 'architecture') for run, checkpoint in named.items()]
    return args.out, cfg, [('teacher', 0, teacher, 'teacher'), *networks]
