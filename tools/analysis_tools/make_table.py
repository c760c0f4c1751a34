"""Set runs beside the published figures: ``make_table.py WORK_DIR...``."""

import argparse
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch
from crd_plugin.cli.comparison import (
    compare,
    read_metafile,
    read_table_runs,
    render_csv,
    render_json,
    render_markdown,
)

FORMATS = dict(markdown=render_markdown, csv=render_csv, json=render_json)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parse the command line.

    Args:
        argv (Sequence[str], optional): Arguments; defaults to those of the
            command line.

    Returns:
        argparse.Namespace: The parsed arguments.
    """
    parser = argparse.ArgumentParser(
        description='Print the table of the runs of tools/run_table.py '
        'beside the published figures: top-1 of the last and the best epoch, '
        'mean and deviation over seeds, difference, seeds, hash of the '
        'teacher. Cells that were not trained are marked.'
    )
    parser.add_argument(
        'work_dirs',
        nargs='+',
        metavar='WORK_DIR',
        help='--work-dir of run_table.py, or the folder of one config or run',
    )
    parser.add_argument(
        '--format', choices=list(FORMATS), default='markdown', help='default: markdown'
    )
    parser.add_argument('--out', type=Path, metavar='FILE', help='write there, not to stdout')
    parser.add_argument(
        '--published',
        nargs='+',
        type=Path,
        metavar='METAFILE',
        help='files with the published figures; default: metafile.yml beside '
        'each config, or in the folder of that name in configs/',
    )
    return parser.parse_args(argv)


def find_metafiles(configs: Sequence[str]) -> List[Path]:
    """Metafiles beside configs.

    Args:
        configs (Sequence[str]): Config files as recorded with their runs.

    Returns:
        list[Path]: Each file once; configs that have none are passed over.
    """
    found = {}
    for config in configs:
        folder = Path(config).parent
        for candidate in (folder, launch.locate('configs') / folder.name):
            path = candidate / 'metafile.yml'
            if path.is_file():
                found.setdefault(path.resolve(), path)
                break
    return list(found.values())


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Make the table.

    Args:
        argv (Sequence[str], optional): Arguments; defaults to those of the
            command line.

    Raises:
        UsageError: If there are no runs, or a file is damaged.
    """
    args = parse_args(argv)
    for path in args.work_dirs:
        if not Path(path).is_dir():
            raise cli.UsageError(
                f'WORK_DIR {path} is no folder; give the --work-dir of tools/run_table.py.'
            )
    for path in args.published or ():
        if not path.is_file():
            raise cli.UsageError(f'--published {path} does not exist; give a metafile.yml.')
    try:
        runs = read_table_runs(args.work_dirs)
        metafiles = args.published or find_metafiles([run.record['config'] for run in runs])
        figures = [figure for path in metafiles for figure in read_metafile(path)]
    except ValueError as error:
        raise cli.UsageError(str(error)) from error
    text = FORMATS[args.format](compare(runs, figures))
    if args.out is None:
        sys.stdout.write(text)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        launch.write_whole(args.out, text)


if __name__ == '__main__':
    sys.exit(cli.run(main))
