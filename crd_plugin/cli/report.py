"""Assemble tables and figures of trained runs in one HTML file that opens without a network."""

import base64
import html
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from markdown_it import MarkdownIt
from mmengine.config import Config

from . import features
from .arguments import UsageError
from .lookup import one_line
from .results import plot_accuracies, plot_curves, read_run
from .resuming import POINTER, checkpoints

# A heading, then Markdown and image files.
Section = tuple[Any, ...]
# Name, config, checkpoint, and the path of the teacher's checkpoint, or nothing.
Student = tuple[str, Config, Path, str]
# Images in a t-SNE, which takes about a second per network for these.
_EMBEDDED = 300
_FEATURES = (
    f'Features of the first {_EMBEDDED} validation images by t-SNE, coloured by class; the first '
    'seed of each method, last checkpoint. Distances between clusters mean little.'
)
_LOGITS = (
    'How far the correlation between the logits of two classes, over the validation images, is '
    "from the teacher's; in the titles the mean over classes. At 0 a student mixes classes up as "
    'its teacher does.'
)
# What this package writes, besides paragraphs; anything else is escaped.
_MARKDOWN = MarkdownIt('zero').enable(['table', 'list', 'backticks'])
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; }}
body {{ padding: 0 1rem; overflow-wrap: anywhere; }}
h2 {{ margin-top: 2.5rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; white-space: nowrap; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #8886; }}
img {{ max-width: 100%; background: white; border-radius: .4rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def render_report(title: str, sections: Sequence[Section]) -> str:
    """Write sections as a page that refers to nothing outside.

    Args:
        title (str): Heading of the page.
        sections (Sequence[tuple]): Heading of each section, then any number of Markdown texts
            (paragraphs, tables, lists, code within a line) and paths of PNG files.

    Returns:
        str: HTML.
    """
    parts = []
    for heading, *contents in sections:
        heading = html.escape(heading)
        parts.append(f'<section>\n<h2>{heading}</h2>')
        for content in contents:
            if isinstance(content, Path):
                image = content.read_bytes()
                # At 100 pixels per inch; the files have 150. The width is in the header of a PNG.
                width = int.from_bytes(image[16:20], 'big') * 2 // 3
                source = f'data:image/png;base64,{base64.b64encode(image).decode()}'
                parts.append(f'<img alt="{heading}" width="{width}" src="{source}">')
            else:
                parts.append(_MARKDOWN.render(content))
        parts.append('</section>')
    return _PAGE.format(title=html.escape(title), body='\n'.join(parts))


def report_table(title: str, runs: pd.DataFrame, text: str) -> str:
    """Write a table of ``tools/run_table.py`` as a page with the figures of its finished runs.

    Args:
        title (str): Heading of the page.
        runs (DataFrame): As from :func:`~crd_plugin.cli.comparison.read_table_runs`.
        text (str): The table, as from :func:`~crd_plugin.cli.comparison.render_markdown`.

    Returns:
        str: HTML. The runs of each student, schedule and data set have figures of their own.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs[runs['finished']].to_dict('records'):
        # method[_teacher]_student_schedule_data, then values of a sweep
        key = '_'.join(run['name'].partition(',')[0].split('_')[-3:])
        short = dict(name=run['name'].replace(f'_{key}', ''))
        groups.setdefault(key, []).append({**run, **read_run(run['run_dir']), **short})
    sections: list[Section] = [('Accuracy', text)]
    if not groups:
        sections.append(('Not shown', 'No run has finished.'))
    with TemporaryDirectory() as folder:
        for key, rows in groups.items():
            place = Path(folder, key)
            place.mkdir()
            end = f': {key}' if len(groups) > 1 else ''
            drawn = draw_sections(pd.DataFrame(rows), place, key)
            sections += [(heading + end, *contents) for heading, *contents in drawn]
        return render_report(title, sections)


def draw_sections(runs: pd.DataFrame, folder: Path, title: str) -> list[Section]:
    """Draw the figures of finished runs; where one cannot be drawn, say why.

    Curves, accuracies per seed and, of the first seed of each method, t-SNE of the features and
    correlations between logits, beside the teacher: from last checkpoints and validation images.

    Args:
        runs (DataFrame): One row per run: ``name`` of the method, ``seed``, ``config``,
            ``run_dir``, and what :func:`~crd_plugin.cli.results.read_run` returns.
        folder (Path): For curves.png, accuracies.png, embedding.png and correlation.png; those of
            a second teacher are embedding_2.png and correlation_2.png.
        title (str): Heading of curves and accuracies.

    Returns:
        list[tuple]: Sections for :func:`render_report`.
    """
    curves, seeds = folder / 'curves.png', folder / 'accuracies.png'
    band = 'Mean over seeds; the band reaches from the lowest to the highest.'
    sections = [
        _attempt('Curves', partial(plot_curves, runs, curves, title), curves, band),
        _attempt('Seeds', partial(plot_accuracies, runs, seeds, title), seeds),
    ]
    students, notes = _find_students(runs)
    teachers = dict.fromkeys(teacher for *_, teacher in students if teacher)
    for number, teacher in enumerate(teachers, 1):
        end = f'_{number}.png' if number > 1 else '.png'
        first, second = folder / f'embedding{end}', folder / f'correlation{end}'
        heading = 'Features and logits' if len(teachers) == 1 else f'Beside the teacher {teacher}'
        draw = partial(_draw_networks, teacher, students, first, second, notes)
        sections.append(_attempt(heading, draw, first, _FEATURES, second, _LOGITS))
    if not teachers:
        notes.append('- t-SNE and correlations: no run that can be shown has a teacher.')
    return [*sections, *([('Not shown', '\n'.join(notes))] if notes else [])]


def _attempt(heading: str, draw: Callable[[], None], *contents: str | Path) -> Section:
    """Draw a section."""
    try:
        draw()
    except Exception as error:  # a table that took days does not fail for a figure
        return heading, f'Not drawn: {one_line(error)}'
    return (heading, *contents)


def _find_students(runs: pd.DataFrame) -> tuple[list[Student], list[str]]:
    """Find the first run of each method, and say which of them cannot be shown."""
    found, notes = [], []
    for run in runs.drop_duplicates('name').to_dict('records'):
        folder = Path(run['run_dir'])
        config, saved = folder / Path(run['config']).name, checkpoints(folder, folder / POINTER)
        if not (config.is_file() and saved):
            missing = 'config' if saved else 'checkpoint'
            notes.append(f'- {run["name"]}, t-SNE and correlation: no {missing} in {folder}.')
            continue
        cfg = Config.fromfile(config)
        teacher = cfg.model.get('teacher_ckpt') or ''
        if isinstance(teacher, str):
            found.append((run['name'], cfg, saved[0], teacher))
        else:
            notes.append(f'- {run["name"]}, t-SNE and correlation: it has several teachers.')
    return found, notes


def _draw_networks(
    teacher: str, students: Sequence[Student], embedding: Path, correlation: Path, notes: list[str]
) -> None:
    """Run a teacher, its students and those of the same network that have none; draw them."""
    cfg = next(cfg for _, cfg, _, its_teacher in students if its_teacher == teacher)
    data, outputs = features.own_data(cfg)[1], {}

    def run(name: str, cfg: Config, checkpoint: str, role: str = 'architecture') -> None:
        network = features.load_network(cfg, checkpoint, role)
        sys.stderr.write(f'running {name} on the validation images\n')
        outputs[name] = features.run_network(network, data)

    run('teacher', cfg, teacher, 'teacher')
    for name, own, checkpoint, its_teacher in students:
        if its_teacher not in ('', teacher) or checkpoint.parent == Path(teacher).parent:
            continue
        try:
            run(name, own if its_teacher else cfg, str(checkpoint))
        except UsageError:
            notes.append(f'- {name}, beside {teacher}: not the network of its students.')
    features.plot_embedding(outputs, embedding, _EMBEDDED)
    features.plot_correlation(outputs, correlation)
