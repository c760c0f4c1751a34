"""Take the student out of a distillation: ``publish_student.py CKPT OUT``."""

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
    add = parser.add_argument
    add('checkpoint', help='checkpoint of a distillation')
    add('out', help='NAME.pth, written as NAME-<hash>.pth, or a folder')
    config = 'config that the student must fit (default: the one inside the checkpoint)'
    add('--config', metavar='CONFIG', help=config)
    add(
        '--hub',
        action='store_true',
        help='OUT is a folder as a model hub expects it: also write model.safetensors, config.py '
        'and a model card',
    )
    metrics = 'with --hub: accuracies for the card, as tools/test.py --out-item metrics writes them'
    add('--metrics', metavar='FILE', help=metrics)
    onnx = 'with --hub: also write model.onnx for images of this height and width, and compare it'
    add('--onnx', type=int, metavar='PIXELS', help=onnx)
    upload = 'with --hub: upload the folder to this repository of the Hugging Face Hub'
    add('--upload', metavar='OWNER/NAME', help=upload)
    args = parser.parse_args(argv)
    for name in ('metrics', 'onnx', 'upload'):
        if getattr(args, name) is not None and not args.hub:
            parser.error(f'--{name} belongs to the folder of a hub: add --hub')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the student."""
    args = parse_args(argv)
    config = None if args.config is None else cli.load_config(args.config)
    from crd_plugin.checkpoints import hub
    from crd_plugin.checkpoints.publish import publish_student

    try:
        if args.hub:
            target = hub.export_student(args.checkpoint, args.out, config, args.metrics, args.onnx)
        else:
            target = publish_student(args.checkpoint, args.out, config)
        sys.stdout.write(f'{target}\n')
        if args.upload:
            sys.stdout.write(f'{hub.upload(target.parent, args.upload)}\n')
    except ImportError as error:
        advice = 'install what this needs with `pip install -r requirements/export.txt`.'
        raise cli.UsageError(f'{error}; {advice}') from error
    except (ValueError, OSError) as error:
        raise cli.UsageError(str(error)) from error


if __name__ == '__main__':
    sys.exit(cli.run(main))
