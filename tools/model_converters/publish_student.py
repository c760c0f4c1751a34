"""Take the student out of a distillation: ``publish_student.py CKPT OUT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Write the student of a distillation as a plain '
        'mmpretrain checkpoint: no teacher, no memory bank, no optimizer.'
    )
    parser.add_argument('checkpoint', help='checkpoint of a distillation')
    parser.add_argument('out', help='NAME.pth, written as NAME-<hash>.pth, or a folder')
    parser.add_argument(
        '--config',
        metavar='CONFIG',
        help='config that the student must fit and that is written into the '
        'file; defaults to the one inside the checkpoint',
    )
    parser.add_argument(
        '--no-ema',
        action='store_true',
        help='of a run with EMAHook, publish the last weights rather than the averaged ones',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the student."""
    args = parse_args(argv)
    config = None if args.config is None else cli.load_config(args.config)
    from crd_plugin.checkpoints.publish import publish_student

    try:
        target = publish_student(args.checkpoint, args.out, config, use_ema=not args.no_ema)
    except (ValueError, OSError) as error:
        raise cli.UsageError(str(error)) from error
    sys.stdout.write(f'{target}\n')


if __name__ == '__main__':
    sys.exit(cli.run(main))
