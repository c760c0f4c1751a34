"""Sets the runs of a table beside the published figures."""

import csv
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Union

from .results import RunResult, read_run, render_cells, summarise

RECORD = 'run.json'  # as tools/run_table.py writes it
_KEYS = ('config', 'seed', 'options', 'epochs', 'signature', 'teacher', 'finished', 'seconds')
_TOP1 = re.compile(r'top.?1\b', re.IGNORECASE)
_NUMBER = re.compile(r'\d+(\.\d+)?')
_MISSING = 'missing'


@dataclass
class PublishedFigure:
    """What a metafile says of one config.

    Args:
        config (str): Name of the config, without folder and suffix.
        top1 (float, optional): Percent; None if nothing was published.
        source (str): Where the figure is from.
        data (str): Data set.
        metafile (str): File that says so.
    """

    config: str
    top1: Optional[float]
    source: str
    data: str
    metafile: str


@dataclass
class TableRun:
    """One run of ``tools/run_table.py``.

    Args:
        record (dict): What was trained: config, seed, options, epochs,
            signature, teacher, finished.
        result (RunResult, optional): None before the first validation.
        run_dir (str): Its folder.
    """

    record: Dict[str, Any]
    result: Optional[RunResult]
    run_dir: str

    @property
    def config(self) -> str:
        """str: Name of the config, without folder and suffix."""
        return Path(self.record['config']).stem

    @property
    def epoch(self) -> int:
        """int: Last epoch that was validated, 0 for none."""
        return self.result.epochs[-1] if self.result else 0

    @property
    def finished(self) -> bool:
        """bool: Whether its last epoch counts in a table."""
        return self.result is not None and (
            self.record['finished'] or self.epoch >= self.record['epochs']
        )


def read_metafile(path: Union[str, Path]) -> List[PublishedFigure]:
    """Read the figures of an OpenMMLab ``metafile.yml``.

    A figure under ``Published`` counts; without one, that under
    ``Results``/``Metrics``.

    Args:
        path (str | Path): The file.

    Returns:
        list[PublishedFigure]: One a model, in the order of the file.

    Raises:
        ValueError: If it is no YAML with a list of ``Models``.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise ValueError(f'{path} is no YAML: {error}') from error
    models = content.get('Models') if isinstance(content, dict) else None
    if not isinstance(models, list):
        raise ValueError(
            f'{path} has no list of `Models`; give a metafile.yml in the style of OpenMMLab.'
        )
    figures = []
    for model in models:
        published = model.get('Published') or {}
        source = published.get('Source') if isinstance(published, dict) else ''
        top1 = _top1(published)
        if top1 is None:
            top1, source = _top1(model.get('Results')), 'Results'
        metadata = model.get('Metadata') or {}
        figures.append(
            PublishedFigure(
                config=Path(model.get('Config') or model['Name']).stem,
                top1=top1,
                source=str(source or '') if top1 is not None else '',
                data=str(metadata.get('Training Data') or ''),
                metafile=str(path),
            )
        )
    return figures


def _top1(found: Any) -> Optional[float]:
    """The first top-1 accuracy in nested dicts and lists."""
    if isinstance(found, list):
        values = map(_top1, found)
    elif isinstance(found, dict):
        for key, value in found.items():
            number = _NUMBER.search(str(value))
            if _TOP1.search(str(key)) and number:
                return float(number.group())
        values = map(_top1, found.values())
    else:
        return None
    return next((value for value in values if value is not None), None)


def read_table_runs(work_dirs: Iterable[Union[str, Path]]) -> List[TableRun]:
    """Read all runs of ``tools/run_table.py`` under some folders.

    Runs that were moved aside (``seed_0_old1``) are left out.

    Args:
        work_dirs (Iterable): A table's folder, that of a config or of a run.

    Returns:
        list[TableRun]: Each once, sorted by folder.

    Raises:
        ValueError: If there is none, a file is damaged, or two are of the
            same config and seed.
    """
    work_dirs = list(work_dirs)
    records = {
        path.resolve(): path
        for work_dir in work_dirs
        for path in Path(work_dir).rglob(RECORD)
        if re.fullmatch(r'seed_\d+', path.resolve().parent.name)
    }
    if not records:
        raise ValueError(
            f'no run in {", ".join(map(str, work_dirs))}: there is no '
            f'seed_*/{RECORD}; give the --work-dir of tools/run_table.py.'
        )
    runs = []
    for path in sorted(records.values()):
        record = _read_record(path)
        name = Path(record['config']).stem
        try:
            result = read_run(path.parent, name, record['seed'], record['seconds'])
        except FileNotFoundError:
            result = None
        except ValueError:
            if record['finished']:
                raise
            result = None
        runs.append(TableRun(record, result, path.parent.as_posix()))
    _check_unique(runs)
    # seed_10 comes after seed_9.
    return sorted(runs, key=lambda run: run.record['seed'])


def _read_record(path: Path) -> Dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding='utf-8'))
        lacking = set(_KEYS) - set(record)
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path} is damaged ({error}); move its folder away.') from error
    if lacking:
        raise ValueError(
            f'{path} lacks {", ".join(sorted(lacking))}: it is '
            'no run of tools/run_table.py; move its folder away.'
        )
    return record


def _check_unique(runs: Iterable[TableRun]) -> None:
    """Refuse two runs of one cell: which counts is not ours to choose."""
    found: Dict[tuple, TableRun] = {}
    for run in runs:
        key = (run.config, run.record['seed'])
        other = found.setdefault(key, run)
        if other is not run:
            raise ValueError(
                f'{other.run_dir} and {run.run_dir} are both '
                f'{key[0]} with seed {key[1]}; leave one out.'
            )


def compare(runs: Sequence[TableRun], figures: Sequence[PublishedFigure]) -> List[dict]:
    """One row a config: what was measured beside what was published.

    Published figures without a run are cells of the table too: those of the
    same metafile and data set as any run are listed as missing.

    Args:
        runs (Sequence[TableRun]): The runs.
        figures (Sequence[PublishedFigure]): The published figures.

    Returns:
        list[dict]: Rows in the order of the figures, others after them:
        ``config``, ``published``, ``source``, ``last``, ``best`` (dicts of
        ``mean`` and ``std``), ``best_epoch``, ``difference`` (last epoch
        minus published), ``difference_best``, ``seeds`` (finished),
        ``missing_seeds``, ``teacher`` (first eight digits of the hash),
        ``options``, ``notes`` and ``runs``. What is not there is None.
    """
    known = {figure.config: figure for figure in figures}
    trained = {run.config for run in runs}
    wanted = {(known[name].metafile, known[name].data) for name in trained if name in known}
    names = [
        figure.config
        for figure in figures
        if figure.config in trained
        or figure.top1 is not None
        and (figure.metafile, figure.data) in wanted
    ]
    names += [run.config for run in runs]
    seeds = sorted({run.record['seed'] for run in runs})
    return [
        _row(name, [run for run in runs if run.config == name], known.get(name), seeds)
        for name in dict.fromkeys(names)
    ]


def _row(
    name: str, runs: Sequence[TableRun], figure: Optional[PublishedFigure], seeds: Sequence[int]
) -> dict:
    finished = [run for run in runs if run.finished]
    done = [run.record['seed'] for run in finished]
    summary = summarise([run.result for run in finished])
    numbers = summary[0] if summary else {}
    published = figure.top1 if figure else None
    last, best = numbers.get('top1_last'), numbers.get('top1_best')
    teachers = dict.fromkeys(_short_hash(run.record['teacher']) for run in runs)
    options = dict.fromkeys(' '.join(run.record['options']) for run in runs)
    notes = [
        f'seed {run.record["seed"]} is at epoch {run.epoch} of {run.record["epochs"]}'
        for run in runs
        if not run.finished
    ]
    if len({run.record['signature'] for run in finished}) > 1:
        notes.append('the seeds were trained with different settings')
    if len(teachers) > 1:
        notes.append('the seeds were trained with different teachers')
    notes += [f'trained with {text}' for text in options if text]
    return dict(
        config=name,
        published=published,
        source=figure.source if figure else '',
        last=last,
        best=best,
        best_epoch=numbers.get('best_epoch'),
        difference=_difference(last, published),
        difference_best=_difference(best, published),
        seeds=done,
        missing_seeds=[seed for seed in seeds if seed not in done],
        teacher=' '.join(teachers) or None,
        options=list(options),
        notes=notes,
        runs=[
            dict(
                seed=run.record['seed'],
                run_dir=run.run_dir,
                finished=run.finished,
                epochs=run.record['epochs'],
                teacher=run.record['teacher'],
                signature=run.record['signature'],
                last=run.result.as_dict()['last'] if run.result else None,
                best=run.result.as_dict()['best'] if run.result else None,
            )
            for run in runs
        ],
    )


def _difference(value: Optional[dict], published: Optional[float]) -> Optional[float]:
    if value is None or published is None:
        return None
    return value['mean'] - published


def _short_hash(teacher: str) -> str:
    """Eight digits of a hash, or those that end the name at an address."""
    if '://' not in teacher:
        return teacher[:8]
    match = re.search(r'-([0-9a-f]{8})\w*\.pth', teacher)
    return match.group(1) if match else teacher


def render_markdown(rows: Sequence[dict]) -> str:
    """Write the comparison as Markdown, readable as plain text too.

    Args:
        rows (Sequence[dict]): As from :func:`compare`.

    Returns:
        str: Table, legend and notes.
    """
    cells = [['config', 'published', 'last epoch', 'best epoch', 'difference', 'seeds', 'teacher']]
    for row in rows:
        seeds = str(len(row['seeds']))
        if row['missing_seeds']:
            total = len(row['seeds']) + len(row['missing_seeds'])
            seeds = f'{seeds} of {total}, missing {" ".join(map(str, row["missing_seeds"]))}'
        cells.append(
            [
                row['config'],
                _text(row['published'], '-'),
                _text(row['last']),
                _text(row['best']),
                '-' if row['difference'] is None else f'{row["difference"]:+.2f}',
                seeds,
                row['teacher'] or '-',
            ]
        )
    lines = [
        render_cells(cells),
        '',
        'Top-1 in percent on the validation set, mean ± sample standard '
        'deviation over seeds; the best epoch is chosen on the same set. '
        'Difference: last epoch minus published. Teacher: start of the '
        "SHA-256 of its checkpoint's file.",
    ]
    notes = [f'- {row["config"]}: {note}' for row in rows for note in row['notes']]
    return '\n'.join(lines + ([''] + notes if notes else [])) + '\n'


def _text(value: Union[dict, float, None], absent: str = _MISSING) -> str:
    if value is None:
        return absent
    if isinstance(value, dict):
        spread = '' if value['std'] is None else f' ± {value["std"]:.2f}'
        return f'{value["mean"]:.2f}{spread}'
    return f'{value:.2f}'


def render_csv(rows: Sequence[dict]) -> str:
    """Write the comparison as CSV; what is not there is an empty cell.

    Numbers have four decimals at most; JSON has all.

    Args:
        rows (Sequence[dict]): As from :func:`compare`.

    Returns:
        str: A line of headings and one a row.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    writer.writerow(
        [
            'config',
            'published',
            'source',
            'last_mean',
            'last_std',
            'best_mean',
            'best_std',
            'best_epoch',
            'difference',
            'seeds',
            'missing_seeds',
            'teacher',
            'notes',
        ]
    )
    for row in rows:
        last, best = row['last'] or {}, row['best'] or {}
        numbers = [
            last.get('mean'),
            last.get('std'),
            best.get('mean'),
            best.get('std'),
            (row['best_epoch'] or {}).get('mean'),
            row['difference'],
        ]
        writer.writerow(
            [
                row['config'],
                row['published'],
                row['source'],
                *(None if number is None else round(number, 4) for number in numbers),
                ' '.join(map(str, row['seeds'])),
                ' '.join(map(str, row['missing_seeds'])),
                row['teacher'],
                '; '.join(row['notes']),
            ]
        )
    return file.getvalue()


def render_json(rows: Sequence[dict]) -> str:
    """Write the comparison as JSON, each run included.

    Args:
        rows (Sequence[dict]): As from :func:`compare`.

    Returns:
        str: A list of rows.
    """
    return json.dumps(rows, indent=1, ensure_ascii=False) + '\n'
