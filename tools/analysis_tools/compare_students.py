"""Compare students with their teacher: ``compare_students.py CONFIG CHECKPOINT... --out DIR``.

For the teacher and each student, on the validation images: top-1; how far the
correlations between the logits of classes are from the teacher's; top-1 of a
linear probe on the frozen features, of CONFIG's own images and, as a transfer,
of scikit-learn's digits. Checkpoints that differ in the seed alone, as in
kd_seed0/ and kd_seed1/, are averaged, and compared with the first one's method.
Writes results.json, correlation.png (mean difference in each title) and
embedding.png (t-SNE of the features; the first seed of each method).
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch, students

MEASURES = {
    'top1': 'top-1',
    'correlation_difference': 'correlation difference',
    'probe': 'linear probe',
    'probe_digits': 'probe on digits',
}
# t-SNE takes about ten seconds per network for these.
EMBEDDED = 2000


def measure(cfg: Any, networks: Sequence[students.Network]) -> list[dict[str, Any]]:
    """Run all networks, the teacher first; return their numbers and outputs."""
    from crd_plugin.cli import features

    rows: list[dict[str, Any]] = []
    train_data, test_data = features.own_data(cfg, training=True), features.own_data(cfg)
    for name, seed, checkpoint, role in networks:
        sys.stderr.write(f'{name}, seed {seed}: {checkpoint}\n')
        network = features.load_network(cfg, checkpoint, role)
        test = features.run_network(network, test_data)
        others = (train_data, *features.digits(*test.size))
        train, *other = (features.run_network(network, data) for data in others)
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
            )
        )
    return rows


def render(rows: Sequence[dict[str, Any]]) -> str:
    """Write the numbers as Markdown, and the differences to the first student."""
    import pandas as pd

    from crd_plugin.cli import results

    frame = pd.DataFrame(rows)
    text = results.render_summary(results.summarise(frame, MEASURES), MEASURES)
    students = frame[1:]
    names = list(dict.fromkeys(students['name']))
    if 1 < len(names) < len(students):
        columns = {
            f'{title} - {names[0]}': results.paired_differences(students, names[0], key)
            for key, title in MEASURES.items()
            if key != 'correlation_difference'
        }
        text += f'\n\n{results.render_differences(names, columns)}'
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, write results and figures."""
    launch.require('pandas', 'matplotlib', 'sklearn')
    out, cfg, networks = students.read_arguments(__doc__, argv, 'DIR', 'folder for all files')
    from crd_plugin.cli import features

    out.mkdir(parents=True, exist_ok=True)
    rows = measure(cfg, networks)
    text = render(rows)
    sys.stdout.write(f'{text}\n')
    keys = ('name', 'seed', 'checkpoint', *MEASURES)
    content = [
        {key: row[key] for key in keys}
        | dict(correlation=features.class_correlation(row['outputs']).tolist())
        for row in rows
    ]
    launch.write_whole(out / 'results.json', json.dumps(content, indent=1))
    shown: dict[str, Any] = {}
    for row in rows:
        shown.setdefault(row['name'], row['outputs'])  # the first seed of each
    features.plot_correlation(shown, out / 'correlation.png')
    features.plot_embedding(shown, out / 'embedding.png', EMBEDDED)


if __name__ == '__main__':
    sys.exit(cli.run(main))
