"""Compare the runs of a table with the published figures."""

import re
from collections.abc import Collection, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from .arguments import UsageError
from .launch import LOG, locate
from .reading import read_text
from .results import (
    NoAccuracyError,
    format_mean,
    paired_differences,
    read_run,
    render_cells,
    render_differences,
    summarise,
    with_metrics,
)
from .runs import RECORD, files_below, read_record

# Between the config of a probe and what it probes, in the name of its runs.
OF = ' of '
_COLUMNS = ('source', 'table', 'dataset', 'metric', 'value', 'config', 'checkpoint')
_LEGEND = (
    'Top-1 in percent on the validation set, mean ± sample standard deviation over seeds; the best '
    'epoch is chosen on the same set. Difference: last epoch minus published. Teacher: start of '
    "the SHA-256 of its checkpoint's file."
)


def read_published(path: str | Path | None = None) -> pd.DataFrame:
    """Read published figures.

    Args:
        path (str | Path, optional): File with the columns of ``configs/published.csv``, which is
            the default.

    Returns:
        DataFrame: The columns of the file, as texts, and ``published``, the accuracy (for an error
        100 minus it, NaN for n/a); ``title``, source and table; ``name`` of its runs, as in
        :func:`read_table_runs`; ``group``, folder of the config and data set.

    Raises:
        UsageError: If it is not such a file.
    """
    path = path or locate('configs/published.csv')
    text = read_text(path)
    try:
        table = pd.read_csv(StringIO(text), dtype=str, keep_default_na=False).fillna('')
        if missing := [name for name in _COLUMNS if name not in table]:
            raise UsageError(f'the column {missing[0]} is missing')
        value = pd.to_numeric(table['value'].mask(table['value'].str.lower() == 'n/a'))
        if len(infinite := table['value'][value.abs() == float('inf')]):
            raise UsageError(f'{infinite.iloc[0]} is not a finite number')
        if not (table['metric'].str.contains('top-1', case=False) & value.notna()).any():
            found = ', '.join(dict.fromkeys(table['metric'])) or 'no row'
            raise UsageError(f'no figure is a top-1, such as "top-1 %" or "top-1 error %": {found}')
    except ValueError as error:
        raise UsageError(
            f'{path} is not a table of figures: {" ".join(str(error).split())}; expected the '
            'columns of configs/published.csv.'
        ) from error
    tables = table['table'].str.replace(r'^(?=\d)', 'table ', regex=True)
    return table.assign(
        published=value.mask(table['metric'].str.contains('error', case=False), 100 - value).round(
            2
        ),
        title=(table['source'] + ', ' + tables).str.removesuffix(', '),
        name=[
            OF.join(Path(at).stem for at in pair if at)
            for pair in zip(table['config'], table['checkpoint'])
        ],
        group=table['config'].str.rpartition('/')[0] + ' ' + table['dataset'],
    )


def read_table_runs(work_dirs: Sequence[str | Path]) -> pd.DataFrame:
    """Read all runs of ``tools/run_table.py`` in folders of tables, configs or runs.

    Returns:
        DataFrame: One row per run, sorted by seed: the record of what was trained; ``name`` of the
        config, of a probe ``<config> of <network>``; ``run_dir``; ``last`` and ``best`` as from
        :func:`read_run`, or None; ``epoch``, the last that was validated, or 0; ``finished``,
        whether it counts; ``failed``, the error; ``note``, why a finished run does not count.

    Raises:
        UsageError: If there is none, a file is damaged, or two are of one config and seed.
    """
    records: dict[Path, tuple[Path, Path]] = {}
    for work_dir in work_dirs:
        folder = Path(work_dir).resolve()
        for path in files_below(folder):
            if path.name == RECORD and re.fullmatch(r'seed_\d+', path.parent.name):
                # Of a run that links lead to, its own place counts.
                if path == (real := path.resolve()) or real not in records:
                    records[real] = (Path(work_dir, path.relative_to(folder)), path)
    if not records:
        raise UsageError(
            f'no run in {", ".join(map(str, work_dirs))}: there is no seed_*/{RECORD}; give the '
            '--work-dir of tools/run_table.py.'
        )
    runs = pd.DataFrame([_read_table_run(*paths) for paths in sorted(records.values())])
    # Which of two counts is not ours to choose.
    for (name, seed), same in runs.groupby(['name', 'seed']):
        if len(same) > 1:
            first, second, *_ = same['run_dir']
            raise UsageError(
                f'{first} and {second} are both {name} with seed {seed}; leave one out.'
            )
    return runs.sort_values('seed', kind='stable')


def _read_table_run(path: Path, place: Path) -> dict[str, Any]:
    """One row of :func:`read_table_runs`: the record's path, and the same from the root on."""
    run, note = read_record(path), ''
    try:
        result = read_run(path.parent)
    except (FileNotFoundError, ValueError) as error:
        if run['finished'] and not isinstance(error, (FileNotFoundError, NoAccuracyError)):
            raise
        note = f'is finished, but not in the numbers: {error}' if run['finished'] else ''
        result = dict(last=None, best=None, epochs=[0])
    epoch = result['epochs'][-1]
    # Killed after the last validation, a run is finished although its record does not say so.
    finished = epoch > 0 and bool(run['finished'] or epoch >= run['epochs'])
    _, folder, above, *_ = place.parents
    # The folder of a config is named after it, that of a probe after what it probes.
    name = folder.name
    if above.name == Path(run['config']).stem != name:
        name = f'{above.name}{OF}{name}'
        # That the seeds of a row probe different networks is no remark worth making.
        options = [text for text in run['options'] if not text.startswith('model.backbone_ckpt=')]
        run.update(teacher='', signature='', options=options)
    log = path.with_name(LOG)
    *_, line = ['', *log.read_text(errors='replace').splitlines()] if log.is_file() else ['']
    more = dict(
        name=name,
        sweep=run.get('sweep') or {},
        run_dir=path.parent.as_posix(),
        epoch=epoch,
        finished=finished,
        failed=line if line.startswith('error: ') and not finished else '',
        note=note,
    )
    return result | run | more


def compare(runs: pd.DataFrame, figures: pd.DataFrame) -> list[dict[str, Any]]:
    """Compare what was measured with what was published, one row per config.

    Published figures without a run, but of the same group as any, are missing cells of the table.
    Of several top-1 figures of a config the first counts.

    Args:
        runs (DataFrame): As from :func:`read_table_runs`.
        figures (DataFrame): As from :func:`read_published`.

    Returns:
        list[dict]: Rows in the order of the figures, others after them. ``last``, ``best`` and
        ``best_epoch`` are dicts of ``mean`` and ``std``; ``to_alone`` and ``to_kd`` as from
        :func:`paired_differences`; ``seeds`` are the finished ones. What is not there is None.
    """
    names = dict.fromkeys(runs['name'])
    figures = figures[
        figures['metric'].str.contains('top-1', case=False) & figures['published'].notna()
    ]
    groups = figures['group'][figures['name'].isin(names)]
    figures = figures[figures['group'].isin(groups)].drop_duplicates('name')
    known = figures.set_index('name').to_dict('index')
    trained = with_metrics(runs[runs['finished']])
    summary = summarise(trained)
    columns = ['seed', 'run_dir', 'finished', 'epochs', 'teacher', 'signature', 'last', 'best']
    rows = []
    for name in dict.fromkeys([*known, *names]):
        own, numbers = runs[runs['name'] == name], summary.get(name, {})
        published = known[name]['published'] if name in known else None
        last, best = numbers.get('top1_last'), numbers.get('top1_best')
        difference, difference_best = (
            value['mean'] - published if value and name in known else None for value in (last, best)
        )
        to_alone, to_kd = (
            paired_differences(trained[trained['name'].isin((name, other))], other).get(name)
            for other in _references(name, names)
        )
        teachers = dict.fromkeys(map(_short_hash, own['teacher']))
        options = list(dict.fromkeys(map(' '.join, own['options'])))
        done = numbers.get('seeds', [])
        row = dict(
            config=name,
            published=published,
            source=known[name]['title'] if name in known else '',
            last=last,
            best=best,
            best_epoch=numbers.get('best_epoch'),
            difference=difference,
            difference_best=difference_best,
            to_alone=to_alone,
            to_kd=to_kd,
            seeds=done,
            missing_seeds=sorted({*runs['seed'].tolist()} - {*done}),
            teacher=' '.join(teachers) or None,
            num_teachers=max((len(teacher.split()) for teacher in teachers), default=0),
            sweep=own['sweep'].iloc[0] if len(own) else {},
            options=options,
            notes=_notes(own, len(teachers), options),
            runs=own[columns].to_dict('records'),
        )
        rows.append(row)
    return rows


def _notes(runs: pd.DataFrame, teachers: int, options: Sequence[str]) -> list[str]:
    """What a reader of a row should know about its runs."""
    notes = [
        f'seed {run["seed"]} {run["note"]}'
        if run['note']
        else f'seed {run["seed"]} {"failed" if run["failed"] else "is"} at epoch {run["epoch"]} of '
        f'{run["epochs"]}{run["failed"] and ": " + run["failed"]}'
        for run in runs[~runs['finished']].to_dict('records')
    ]
    early = runs[runs['finished'] & (runs['note'] == '') & (runs['epoch'] < runs['epochs'])]
    notes += [
        f'the last validation of seed {run["seed"]} is of epoch {run["epoch"]} of {run["epochs"]}'
        for run in early.to_dict('records')
    ]
    if runs[runs['finished']]['signature'].nunique() > 1:
        notes.append('the seeds were trained with different settings')
    if teachers > 1:
        notes.append('the seeds were trained with different teachers')
    return notes + [f'trained with {text}' for text in options if text]


def _references(name: str, names: Collection[str]) -> Iterator[str]:
    """Names of the student alone and of KD, named method[_teacher]_student_schedule_data."""
    plain, *sweep = name.partition(',')
    config, of, network = plain.rpartition(OF)
    _, *rest = network.split('_')
    for parts in (['vanilla', *rest[-3:]], ['kd', *rest]):
        reference = config + of + '_'.join(parts)
        swept = reference + ''.join(sweep)  # with the same values, if there are such runs
        yield swept if swept in names and swept != name else reference


def _short_hash(teacher: str) -> str:
    """Eight digits of each teacher's hash, or of the one at the end of its URL."""
    words = []
    for word in teacher.split():
        match = re.search(r'(?:^|-)([0-9a-f]{8})[^/]*$', word)
        words.append(match[1] if match else word)
    return ' '.join(words)


def render_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Write rows, as from :func:`compare`, as Markdown: table, legend and notes."""
    cells = [['config', 'published', 'last epoch', 'best epoch', 'difference', 'seeds', 'teacher']]
    for row in rows:
        seeds, missing = str(len(row['seeds'])), row['missing_seeds']
        if missing:
            total = len(row['seeds']) + len(missing)
            seeds = f'{seeds} of {total}, missing {" ".join(map(str, missing))}'
        cells.append(
            [
                row['config'],
                '-' if row['published'] is None else f'{row["published"]:.2f}',
                format_mean(row['last'], absent='missing'),
                format_mean(row['best'], absent='missing'),
                '-' if row['difference'] is None else f'{row["difference"]:+.2f}',
                seeds,
                row['teacher'] or '-',
            ]
        )
    differences = {
        title: {row['config']: row[key] for row in rows if row[key]}
        for title, key in (('last - student alone', 'to_alone'), ('last - KD', 'to_kd'))
    }
    second = render_differences([row['config'] for row in rows], differences)
    notes = '\n'.join(f'- {row["config"]}: {note}' for row in rows for note in row['notes'])
    return '\n\n'.join(filter(None, [render_cells(cells), _LEGEND, second, notes])) + '\n'


def render_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Write rows, as from :func:`compare`, as CSV with at most four decimals."""
    frame = pd.json_normalize(list(rows), sep='_').drop(columns='best_epoch', errors='ignore')
    frame = frame.rename(columns=dict(best_epoch_mean='best_epoch'))
    for column, separator in (('seeds', ' '), ('missing_seeds', ' '), ('notes', '; ')):
        frame[column] = [separator.join(map(str, values)) for values in frame[column]]
    numbers = ['last_mean', 'last_std', 'best_mean', 'best_std', 'best_epoch', 'difference']
    words = ['seeds', 'missing_seeds', 'teacher', 'notes']
    to = [f'to_{other}_{key}' for other in ('alone', 'kd') for key in ('mean', 'low', 'high')]
    frame = frame.reindex(columns=['config', 'published', 'source', *numbers, *words, *to])
    frame[numbers + to] = frame[numbers + to].astype(float).round(4)
    return frame.to_csv(index=False, lineterminator='\n')
