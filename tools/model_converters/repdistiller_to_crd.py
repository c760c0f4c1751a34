"""Use a teacher of RepDistiller: ``repdistiller_to_crd.py IN.pth OUT.pth``."""

import argparse
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Write a checkpoint of HobbitLong/RepDistiller as one of '
        'our configs, for teacher_ckpt or load_from.'
    )
    add = parser.add_argument
    file = 'file of RepDistiller, such as resnet32x4_vanilla/ckpt_epoch_240.pth'
    add('checkpoint', metavar='IN.pth', help=file)
    add('out', metavar='OUT.pth', help='file to write')
    arch = 'its name in RepDistiller, such as resnet32x4 (default: the one that the weights fit)'
    add('--arch', metavar='NAME', help=arch)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert a checkpoint."""
    args = parse_args(argv)
    from crd_plugin.checkpoints.convert_repdistiller import convert_repdistiller

    try:
        target = convert_repdistiller(args.checkpoint, args.out, args.arch)
    except (ValueError, OSError) as error:
        raise cli.UsageError(str(error)) from error
    sys.stdout.write(f'{target}\n')


if __name__ == '__main__':
    sys.exit(cli.run(main))
