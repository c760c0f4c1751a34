"""Print the runs of tools/run_table.py beside the published figures: ``make_table.py WORK_DIR...``.

Top-1 of the last and the best epoch, mean and standard deviation over seeds, difference, seeds,
hash of the teacher. Cells that were not trained are marked.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    what = '--work-dir of run_table.py, or the folder of one config or run'
    add('work_dirs', nargs='+', metavar='WORK_DIR', help=what)
    what = (
        'default: markdown; html is a page with curves, t-SNE and correlations, for which it runs '
        'the last checkpoint of the first seed of each config on the validation images'
    )
    add('--format', choices=('markdown', 'csv', 'json', 'html'), default='markdown', help=what)
    add('--out', type=Path, metavar='FILE', help='write there, not to stdout')
    what = 'the published figures; default: configs/published.csv'
    add('--published', type=Path, metavar='CSV', help=what)
    what = (
        'also draw top-1 into this image, with deviations, against the values of --sweep or the '
        'networks of --probe, or the error, 100 minus top-1, against the number of teachers'
    )
    add('--plot', type=Path, metavar='FILE', help=what)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the table."""
    args = parse_args(argv)
    launch.require('pandas')
    if args.plot or args.format == 'html':
        launch.require('matplotlib', 'sklearn', 'markdown_it')
    from crd_plugin.cli import comparison, results
    from crd_plugin.cli.sweeps import plot_rows

    if args.out:
        results.prepare(args.out, '--out')
    if args.plot:
        results.prepare(args.plot, '--plot', figure=True)
    runs = comparison.read_table_runs(args.work_dirs)
    rows = comparison.compare(runs, comparison.read_published(args.published))
    if args.plot:
        plot_rows(rows, args.plot)
    if args.format == 'json':
        text = json.dumps(rows, indent=1, ensure_ascii=False) + '\n'
    elif args.format == 'csv':
        text = comparison.render_csv(rows)
    else:
        text = comparison.render_markdown(rows)
    if args.format == 'html':
        from crd_plugin.cli import report

        text = report.report_table(f'Runs in {", ".join(args.work_dirs)}', runs, text)
    if args.out is None:
        sys.stdout.write(text)
    else:
        launch.write_whole(args.out, text)


if __name__ == '__main__':
    sys.exit(cli.run(main))
