"""Try a config out before training: ``tools/check_config.py CONFIG``."""

import argparse
import os.path as osp
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Build everything of a config, run one training step, and print what is '
        'recorded, every loss with the gradient it sends, and the size of the memory bank. Exit '
        'status 0 if all is fine, else 1 and one line per problem.'
    )
    add = parser.add_argument
    add('config', help='config file')
    size = 'number of samples (default: that of the config, at most 4)'
    add('--batch-size', type=int, metavar='N', help=size)
    add(
        '--no-teacher-ckpt',
        action='store_true',
        help='go on with a random teacher (or probed network) if its checkpoint does not exist yet',
    )
    cli.add_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check a config."""
    args = parse_args(argv)
    if not osp.isfile(args.config):
        cli.load_config(args.config)  # says which are the nearest
    from crd_plugin.cli.dry_run import dry_run_file
    from crd_plugin.cli.dry_run_report import render

    report = dry_run_file(
        args.config,
        args.cfg_options,
        batch_size=args.batch_size,
        use_teacher_ckpt=not args.no_teacher_ckpt,
    )
    sys.stdout.write(render(report))
    sys.stdout.flush()
    for problem in report.problems:
        sys.stderr.write(f'error: {problem}\n')
    if report.problems:
        raise SystemExit(1)


if __name__ == '__main__':
    sys.exit(cli.run(main))
