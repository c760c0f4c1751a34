"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``."""

import argparse
import os
import os.path as osp
import sys
from collections.abc import Sequence
from copy import deepcopy

from crd_plugin.cli import arguments as cli


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description='Evaluate a checkpoint. With the config of a distillation, the student is '
        'evaluated.'
    )
    add = parser.add_argument
    add('config', help='config file')
    add('checkpoint', help='checkpoint file or URL')
    out = 'write the results to this file: predictions as .pkl, metrics as .json, .yaml or .pkl'
    add('--out', metavar='FILE', help=out)
    items = 'what --out writes (default: pred)'
    add('--out-item', choices=['metrics', 'pred'], help=items)
    add('--show-dir', metavar='DIR', help='write the images with their predictions to this folder')
    add('--show', action='store_true', help='show the images with their predictions in a window')
    add('--interval', type=int, default=1, help='show or write every n-th image (default: 1)')
    wait = 'seconds that a window stays open (default: 2)'
    add('--wait-time', type=float, default=2, help=wait)
    add(
        '--tta',
        action='store_true',
        help='average over augmented views: those of `tta_pipeline` and `tta_model` in the config, '
        'else the image and its mirror image',
    )
    cli.add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.out is None and args.out_item is not None:
        parser.error('--out-item needs the file to write: add --out FILE')
    if args.tta and (args.show or args.show_dir is not None):
        parser.error('--show and --show-dir draw one view of an image; leave out --tta')
    if args.interval < 1:
        parser.error(f'--interval must be at least 1, but is {args.interval}')
    kinds: tuple[str, ...] = ('.pkl', '.pickle')
    if args.out_item == 'metrics':
        kinds += ('.json', '.yaml', '.yml')
    if args.out is not None and not args.out.endswith(kinds):
        parser.error(f'--out {args.out} must end in one of {", ".join(kinds)} for these results')
    return args


def merge_args(cfg, args: argparse.Namespace) -> None:
    """Write the arguments into the config."""
    for name in ('test_cfg', 'test_dataloader', 'test_evaluator'):
        if cfg.get(name) is None:
            raise cli.UsageError(
                f'{args.config} has no `{name}`, so there is nothing to evaluate; add it, most '
                f'often as a copy of `{name.replace("test", "val")}`.'
            )
    cfg.load_from = args.checkpoint
    cfg.resume = False
    # It holds all weights; files that the run started from may not exist any more.
    for name in ('teacher_ckpt', 'student_ckpt', 'backbone_ckpt'):
        if cfg.model.get(name) is not None:
            cfg.model[name] = cli.without_files(cfg.model[name])
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        if 'visualization' not in cfg.get('default_hooks', {}):
            raise cli.UsageError(
                f'--show and --show-dir need a hook that {args.config} lacks; add '
                "`visualization=dict(type='VisualizationHook')` to its `default_hooks`."
            )
        shown = dict(show=args.show, out_dir=args.show_dir, wait_time=args.wait_time)
        cfg.default_hooks.visualization.update(shown, enable=True, interval=args.interval)
    if args.tta:
        _augment(cfg)
    cli.merge_common_arguments(cfg, args)


def _augment(cfg) -> None:
    """Wrap the model and the test pipeline for test-time augmentation."""
    pipeline = cfg.test_dataloader.dataset.pipeline
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
    if 'tta_pipeline' not in cfg:
        mirror = [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)]
        views = dict(type='TestTimeAug', transforms=[mirror, [deepcopy(pipeline[-1])]])
        cfg.tta_pipeline = [*deepcopy(pipeline[:-1]), views]
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a checkpoint."""
    args = parse_args(argv)
    cfg = cli.load_config(args.config)
    cli.check_checkpoint(args.checkpoint, 'checkpoint')
    with cli.explained(cfg):
        merge_args(cfg, args)
        runner = cli.build_runner(cfg)
        if args.out is not None:
            os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
            if args.out_item != 'metrics':
                from mmengine.evaluator import DumpResults

                runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        metrics = runner.test()
    if args.out_item == 'metrics':
        from mmengine.dist import is_main_process
        from mmengine.fileio import dump

        if is_main_process():
            dump(metrics, args.out)


if __name__ == '__main__':
    sys.exit(cli.run(main))
