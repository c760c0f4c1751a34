"""Compare students with their teacher: ``compare_students.py CONFIG CHECKPOINT... --out DIR``.

For the teacher and each student, on the validation images: top-1; how far the
correlations between the logits of classes are from the teacher's; top-1 of a
linear probe on the frozen features, of CONFIG's own images and, as a transfer,
of scikit-learn's digits. Checkpoints that differ in the seed alone, as in
kd_seed0/ and kd_seed1/, are averaged, and compared with the first one's method.
Writes results.json, correlation.png (mean difference in each title) and
embedding.png (t-SNE of the features; the first seed of each method).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch

MEASURES = {
    'top1': 'top-1',
    'correlation_difference': 'correlation difference',
    'probe': 'linear probe',
    'probe_digits': 'probe on digits',
}
# t-SNE takes about ten seconds per network for these.
EMBEDDED = 2000


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help='of a distillation; its teacher_ckpt is the teacher')
    what = "checkpoints of CONFIG's student, trained with any method or alone"
    add('checkpoints', nargs='+', metavar='CHECKPOINT', help=what)
    add('--out', type=Path, required=True, metavar='DIR', help='folder for results and figures')
    what = 'override values of CONFIG'
    add('--cfg-options', nargs='+', action=cli.SettingAction, metavar='KEY=VALUE', help=what)
    args = parser.parse_args(argv)
    for checkpoint in args.checkpoints:
        cli.check_checkpoint(checkpoint, 'CHECKPOINT')
    return args


def name_of(checkpoint: str) -> tuple[str, int]:
    """Method and seed by the folder of a checkpoint, as demo.py and run_table.py name it."""
    folder = Path(checkpoint).resolve().parent
    for pattern, text in (
        (r'(.+)_seed(\d+)', folder.name),
        (r'(.+)/seed_(\d+)', '/'.join(folder.parts[-2:])),
    ):
        match = re.fullmatch(pattern, text)
        if match:
            return match[1], int(match[2])
    return folder.name, 0


def measure(
    cfg: Any, networks: Sequence[tuple[str, int, str, str]], shape: Sequence[int]
) -> list[dict[str, Any]]:
    """Run all networks, the teacher first; return their numbers and outputs."""
    from crd_plugin.cli import features

    rows: list[dict[str, Any]] = []
    train_data, test_data = features.own_data(cfg)
    digits = features.digits(*shape[-2:])
    for name, seed, checkpoint, role in networks:
        sys.stderr.write(f'{name}, seed {seed}: {checkpoint}\n')
        network = features.load_network(cfg, checkpoint, role)
        test = features.run_network(network, test_data)
        train, *other = (features.run_network(network, data) for data in (train_data, *digits))
        difference = features.correlation_difference(test, rows[0]['outputs'] if rows else test)
        rows.append(
            dict(
                name=name,
                seed=seed,
                checkpoint=checkpoint,
                top1=test.top1,
                correlation_difference=float(difference.mean()),
                probe=features.linear_probe(train, test),
                probe_digits=features.linear_probe(*other),
                outputs=test,
                difference=difference,
            )
        )
    return rows


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Write the numbers as Markdown, and the differences to the first student."""
    import pandas as pd

    from crd_plugin.cli import statistics
    from crd_plugin.cli.results import format_mean, render_cells

    frame = pd.DataFrame([{key: row[key] for key in ('name', 'seed', *MEASURES)} for row in rows])
    cells = [['network', 'seeds', *MEASURES.values()]]
    for name, group in frame.groupby('name', sort=False):
        values = [
            format_mean(
                dict(mean=group[key].mean(), std=group[key].std() if len(group) > 1 else None),
                digits=3 if key == 'correlation_difference' else 2,
            )
            for key in MEASURES
        ]
        cells.append([str(name), str(len(group)), *values])
    text = render_cells(cells)
    students = frame[1:]
    reference = students['name'].iloc[0]
    if students['name'].nunique() > 1 and len(students) > students['name'].nunique():
        columns = {
            f'{title} - {reference}': statistics.paired_differences(
                students.assign(last=[dict(top1=value) for value in students[key]]), reference
            )
            for key, title in MEASURES.items()
            if key != 'correlation_difference'
        }
        names = list(dict.fromkeys(students['name']))
        text += f'\n\n{statistics.render_differences(names, columns)}\n\n{statistics.LEGEND}'
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write results and figures."""
    args = parse_args(argv)
    launch.require('pandas', 'matplotlib', 'sklearn')
    cfg = cli.load_config(args.config)
    cli.merge_options(cfg, args.cfg_options)
    teacher = cfg.model.get('teacher_ckpt')
    if not teacher:
        raise cli.UsageError(
            f'CONFIG {args.config} has no model.teacher_ckpt; give the config of a distillation, '
            'or --cfg-options model.teacher_ckpt=FILE.'
        )
    cli.check_checkpoint(teacher, 'model.teacher_ckpt')
    networks = [('teacher', 0, teacher, 'teacher')]
    networks += [(*name_of(path), path, 'architecture') for path in args.checkpoints]
    labels = [(name, seed) for name, seed, _, _ in networks]
    for label in labels:
        if labels.count(label) > 1:
            raise cli.UsageError(
                f'two CHECKPOINTs are {label[0]} with seed {label[1]}, by their folders; give one.'
            )
    from mmengine.registry import DATASETS, DefaultScope

    from crd_plugin.cli import features

    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(features.own_data(cfg)[1])
    rows = measure(cfg, networks, dataset[0]['inputs'].shape)
    text = render(rows)
    sys.stdout.write(f'{text}\n')
    args.out.mkdir(parents=True, exist_ok=True)
    keys = ('name', 'seed', 'checkpoint', *MEASURES)
    content = [
        {key: row[key] for key in keys}
        | dict(correlation=features.class_correlation(row['outputs']).tolist())
        for row in rows
    ]
    launch.write_whole(args.out / 'results.json', json.dumps(content, indent=1))
    shown = {row['name']: row['outputs'] for row in reversed(rows)}
    shown = dict(reversed(shown.items()))  # the first seed of each
    classes = dataset.metainfo['classes']
    features.plot_correlation(shown, args.out / 'correlation.png')
    features.plot_embedding(shown, args.out / 'embedding.png', classes, EMBEDDED)


if __name__ == '__main__':
    sys.exit(cli.run(main))
