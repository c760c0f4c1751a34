"""Try a config out before training: ``tools/check_config.py CONFIG``."""

from __future__ import annotations

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
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--batch-size',
        type=int,
        metavar='N',
        help='number of samples (default: that of the config, at most 4)',
    )
    parser.add_argument('--device', default='cpu', help='where to run (default: cpu)')
    parser.add_argument(
        '--no-teacher-ckpt',
        action='store_true',
        help='go on with a random teacher (or probed network) if its checkpoint does not exist yet',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=cli.SettingAction,
        metavar='KEY=VALUE',
        help='replace settings of the config, for example model.teacher_ckpt=teacher.pth',
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check a config."""
    args = parse_args(argv)
    if not osp.isfile(args.config):
        cli.load_config(args.config)  # says which are the nearest
    from crd_plugin.cli.dry_run import dry_run_file
    from crd_plugin.cli.dry_run_report import render

    try:
        report = dry_run_file(
            args.config,
            args.cfg_options,
            batch_size=args.batch_size,
            device=args.device,
            use_teacher_ckpt=not args.no_teacher_ckpt,
        )
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    sys.stdout.write(render(report))
    sys.stdout.flush()
    for problem in report.problems:
        sys.stderr.write(f'error: {problem}\n')
    if not report.ok:
        raise SystemExit(1)


if __name__ == '__main__':
    sys.exit(cli.run(main))
