"""Assemble tables and figures of trained runs in one HTML file that opens without a network."""

import base64
import html
import sys
from collections.abc import Callable, Sequence
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

# A heading, then texts (Markdown: paragraphs, tables, lists, code within a line) and PNG files.
Section = tuple[Any, ...]
# Name, config, checkpoint, and the path of the teacher's checkpoint, or nothing.
Student = tuple[str, Config, Path, str]
# Images in a t-SNE, which takes about a second per network for these.
_EMBEDDED = 300
_FEATURES = (
    f'Features of {_EMBEDDED} validation images of all classes, or of all if there are fewer, by '
    't-SNE, coloured by class; the first seed of each method, last checkpoint. Distances between '
    'clusters mean little.'
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
<meta charset="utf-8"/>
<title>{title}</title>
<style>
body {{ font: 1rem/1.5 sans-serif; max-width: 68rem; margin: 2rem auto; overflow-wrap: anywhere; }}
table {{ border-collapse: collapse; white-space: nowrap; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #888; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


def render_report(title: str, sections: Sequence[Section]) -> str:
    """Write sections as a page of HTML that refers to nothing outside."""
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
                parts.append(f'<img alt="{heading}" width="{width}" src="{source}"/>')
            else:
                parts.append(_MARKDOWN.render(content))
        parts.append('</section>')
    return _PAGE.format(title=html.escape(title), body='\n'.join(parts))


def report_table(title: str, runs: pd.DataFrame, text: str) -> str:
    """Write a table and its runs, as ``comparison`` reads them, as a page with their figures."""
    sections: list[Section] = [('Accuracy', text)]
    runs = runs[runs['finished']]
    if runs.empty:
        sections.append(('Not shown', 'No run has finished.'))
    # method[_teacher]_student_schedule_data, then values of a sweep
    keys = runs['name'].map(lambda name: '_'.join(name.partition(',')[0].split('_')[-3:]))
    with TemporaryDirectory() as folder:
        for key, group in runs.groupby(keys, sort=False):
            place = Path(folder, key)
            place.mkdir()
            group = group.assign(
                name=group['name'].str.replace(f'_{key}', '', regex=False),
                epochs=[read_run(run_dir)['epochs'] for run_dir in group['run_dir']],
            )
            end = f': {key}' if keys.nunique() > 1 else ''
            drawn = draw_sections(group, place, key)
            sections += [(heading + end, *contents) for heading, *contents in drawn]
        return render_report(title, sections)


def draw_sections(runs: pd.DataFrame, folder: Path, title: str) -> list[Section]:
    """Draw the figures of finished runs; where one cannot be drawn, say why.

    Curves, accuracies per seed and, of the first seed of each method, t-SNE of the features and
    correlations between logits, beside the teacher: from last checkpoints and validation images.

    Args:
        runs (DataFrame): One row per run: ``name`` of the method, ``seed``, ``config``,
            ``run_dir``, and what :func:`~crd_plugin.cli.results.read_run` returns.
        folder (Path): For the image files.
        title (str): Heading of curves and accuracies.

    Returns:
        list[tuple]: Sections for :func:`render_report`.
    """
    curves, seeds = folder / 'curves.png', folder / 'accuracies.png'
    band = 'Mean over seeds; the band reaches from the lowest to the highest.'
    sections = [
        _attempt(('Curves', curves, band), plot_curves, runs, curves, title),
        _attempt(('Seeds', seeds), plot_accuracies, runs, seeds, title),
    ]
    students, notes = _find_students(runs)
    teachers = dict.fromkeys(teacher for *_, teacher in students if teacher)
    for number, teacher in enumerate(teachers, 1):
        end = f'_{number}.png' if number > 1 else '.png'
        first, second = folder / f'embedding{end}', folder / f'correlation{end}'
        heading = 'Features and logits' if len(teachers) == 1 else f'Beside the teacher {teacher}'
        section = (heading, first, _FEATURES, second, _LOGITS)
        sections.append(_attempt(section, _draw_networks, teacher, students, first, second, notes))
    if not teachers:
        notes.append('- t-SNE and correlations: no run that can be shown has a teacher.')
    return [*sections, ('Not shown', '\n'.join(notes))] if notes else sections


def _attempt(section: Section, draw: Callable[..., None], *args: Any) -> Section:
    """Draw the figures of a section."""
    try:
        draw(*args)
    except Exception as error:  # a table that took days does not fail for a figure
        return section[0], f'Not drawn: {one_line(error)}'
    return section


def _find_students(runs: pd.DataFrame) -> tuple[list[Student], list[str]]:
    """Find the first run of each method, and say which of them cannot be shown."""
    found, notes = [], []
    for run in runs.drop_duplicates('name').to_dict('records'):
        folder = Path(run['run_dir'])
        config, saved = folder / Path(run['config']).name, checkpoints(folder, folder / POINTER)
        cfg = Config.fromfile(config) if config.is_file() else Config()
        teacher = cfg.get('model', {}).get('teacher_ckpt') or ''
        if not (cfg and saved):
            missing = 'config' if saved else 'checkpoint'
            notes.append(f'- {run["name"]}, t-SNE and correlation: no {missing} in {folder}.')
        elif not isinstance(teacher, str):
            notes.append(f'- {run["name"]}, t-SNE and correlation: it has several teachers.')
        else:
            found.append((run['name'], cfg, saved[0], teacher))
    return found, notes


def _draw_networks(
    teacher: str, students: Sequence[Student], embedding: Path, correlation: Path, notes: list[str]
) -> None:
    """Run a teacher, its students and those of the same network that have none; draw them."""
    cfg = next(cfg for _, cfg, _, its_teacher in students if its_teacher == teacher)
    data, outputs = features.own_data(cfg), {}

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
