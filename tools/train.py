"""Train a model: ``python tools/train.py CONFIG [flags]``."""

import argparse
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from crd_plugin.cli.resuming import guarded, resume


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description='Train a model.')
    add = parser.add_argument
    add('config', help='config file')
    add(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on with a run: from this checkpoint, or, without a value or with "auto", from the '
        'latest one of the work dir',
    )
    add('--no-validate', action='store_true', help='do not evaluate while training')
    check = 'skip the dry run of tools/check_config.py before training'
    add('--no-check', action='store_true', help=check)
    scale = 'scale the learning rate with the global batch size'
    add('--auto-scale-lr', action='store_true', help=scale)
    workers = 'start the data workers again each epoch'
    add('--no-persistent-workers', action='store_true', help=workers)
    cli.add_common_arguments(parser)
    return parser.parse_args(argv)


def merge_args(cfg, args: argparse.Namespace) -> None:
    """Write the arguments into the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        wrapper = cfg.get('optim_wrapper') or {}
        kind = wrapper.get('type', 'OptimWrapper')
        if not wrapper or kind not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise cli.UsageError(
                '--amp replaces an `optim_wrapper` of type OptimWrapper, but the config has '
                f'{kind if wrapper else "none"}; set the type in the config instead.'
            )
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if cfg.get('auto_scale_lr') is None:
            raise cli.UsageError(
                f'--auto-scale-lr: {args.config} has no `auto_scale_lr`; add `auto_scale_lr = '
                'dict(base_batch_size=...)` with the batch size its learning rate was chosen for.'
            )
        cfg.auto_scale_lr.enable = True
    cli.merge_common_arguments(cfg, args)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the model of a config."""
    args = parse_args(argv)
    cfg = cli.load_config(args.config)
    with cli.explained(cfg):
        merge_args(cfg, args)
        remark = resume(cfg, args.resume)
        notes = [] if args.no_check else cli.try_out(cfg)
        with guarded(cfg):
            runner = cli.build_runner(cfg)
            if remark:
                runner.logger.info(remark)
            for note in notes:
                runner.logger.warning(note)
            runner.train()


if __name__ == '__main__':
    launch.interrupt_on_signals()
    try:
        sys.exit(cli.run(main))
    except KeyboardInterrupt as interrupt:
        launch.leave(interrupt)
