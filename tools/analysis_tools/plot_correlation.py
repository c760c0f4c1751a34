"""Draw figure 2 of the CRD paper: ``plot_correlation.py CONFIG CHECKPOINT... --out FILE.png``.

For the teacher and each student: how far the correlations between the logits of
classes, over the validation images, are from the teacher's. One panel each on
one colour scale, the mean absolute difference in its title. FILE.json has the
differences, teacher minus student, and their means.
"""

import json
import sys
from collections.abc import Sequence

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import launch, students


def main(argv: Sequence[str] | None = None) -> None:
    """Run the networks, write the figure and its numbers."""
    launch.require('matplotlib', 'sklearn')
    out, cfg, networks = students.read_arguments(__doc__, argv, 'FILE.png', 'figure to write')
    from crd_plugin.cli import features, results

    results.prepare(out, '--out', figure=True)

    data, outputs = features.own_data(cfg), {}
    for name, seed, checkpoint, role in networks:
        title = f'{name}, seed {seed}' if name != 'teacher' else name
        outputs[title] = features.run_network(features.load_network(cfg, checkpoint, role), data)
    features.plot_correlation(outputs, out)
    teacher = features.class_correlation(outputs['teacher'])
    content = []
    for title, output in outputs.items():
        difference = teacher - features.class_correlation(output)
        mean = float(abs(difference).mean())
        content.append(dict(name=title, mean_absolute=mean, difference=difference.tolist()))
        sys.stdout.write(f'{title}: {mean:.3f}\n')
    launch.write_whole(out.with_suffix('.json'), json.dumps(content, indent=1))


if __name__ == '__main__':
    sys.exit(cli.run(main))
