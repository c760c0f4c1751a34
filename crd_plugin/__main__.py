"""``python -m crd_plugin distill``: the one call, from the command line."""

import argparse
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; what is not given is left out."""
    parser = argparse.ArgumentParser(
        prog='python -m crd_plugin', description='Contrastive Representation Distillation.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser(
        'distill',
        help='distil a teacher into a student on a folder of images',
        description='Write a config, check it, train the student, publish it. A network is a model '
        'of MMPretrain (resnet18_8xb32_in1k) or timm (timm/resnet18), one of the CIFAR tables '
        '(cifar/resnet8x4), the import path of a class or function (my_package.networks.small), '
        'or a file: a config .py, or a checkpoint .pth that holds its config.',
        argument_default=argparse.SUPPRESS,
    )
    add = command.add_argument
    add('--student', required=True, metavar='NETWORK', help='network to train')
    add('--teacher', required=True, metavar='NETWORK', help='network to learn from')
    weights = "weights of the teacher, or 'pretrained' for those of the model zoo"
    add('--teacher-checkpoint', metavar='FILE', help=weights)
    train = 'one folder of images per class, or images without classes: then without labels'
    add('--train', dest='train_data', required=True, metavar='FOLDER', help=train)
    add('--val', dest='val_data', metavar='FOLDER', help='one folder of images per class')
    add('--method', help='files of configs/_base_/distillers, such as crd+kd (default: crd)')
    add('--epochs', type=int, metavar='N', help='number of epochs (default: 100)')
    add('--batch-size', type=int, metavar='N', help='images per batch (default: 64)')
    add('--lr', type=float, help='initial learning rate (default: 0.1 per 256 images of a batch)')
    add('--image-size', type=int, metavar='N', help='height and width, in pixels (default: 224)')
    add('--seed', type=int, metavar='N', help='seed of all random numbers (default: 0)')
    add('--work-dir', metavar='DIR', help='defaults to work_dirs/METHOD_TEACHER_STUDENT')
    cli.add_options(command)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = vars(parse_args(argv))
    del arguments['command']
    from crd_plugin.cli.one_call import distill

    result = distill(**arguments)
    for name, value in result._asdict().items():
        text = f'{value:.2f} % top-1' if isinstance(value, float) else value
        sys.stdout.write(f'{name:<10}  {text if text is not None else "not validated"}\n')


if __name__ == '__main__':
    launch.interrupt_on_signals()
    try:
        sys.exit(cli.run(main))
    except KeyboardInterrupt as interrupt:
        launch.leave(interrupt)
