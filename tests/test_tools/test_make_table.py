"""tools/analysis_tools/make_table.py on real runs of the digits."""

import csv
import json
import shutil
import statistics

import pytest

from crd_plugin.cli import arguments as cli
from crd_plugin.cli.comparison import read_metafile
from crd_plugin.cli.runs import sha256
from tests import tables

TOOL = 'analysis_tools/make_table.py'
METAFILE = """
Models:
  - Name: student
    Config: method/student.py
    Published: {Top 1 Accuracy: 40.0}
  - Name: crd
    Config: method/crd.py
    Published: {Top 1 Accuracy: 50.0, Source: an invented paper}
  - Name: kd
    Config: method/kd.py
    Published: {Top 1 Accuracy: 45.0}
"""


@pytest.fixture(scope='module')
def tool():
    return tables.load_tool(TOOL)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder where CRD was trained with two seeds, the student with one."""
    folder = tmp_path_factory.mktemp('project')
    configs = tables.write_configs(folder)
    (folder / 'paused').touch()
    (configs / 'metafile.yml').write_text(METAFILE)
    # Side by side: most of their time is imports.
    tools = [
        tables.start(folder, 'run_table.py', f'method/{name}.py', '--jobs', 2, '--seeds', *seeds)
        for name, *seeds in (('crd', 0, 1), ('student', 0))
    ]
    for process in tools:
        tables.finish(process)
    return folder


def _top1(project, name, seed):
    """Top-1 of each epoch as MMEngine wrote it."""
    (log,) = (project / 'work_dirs' / name / f'seed_{seed}').glob('*/vis_data/scalars.json')
    entries = map(json.loads, log.read_text().splitlines())
    return [e['accuracy/top1'] for e in entries if 'accuracy/top1' in e]


@pytest.mark.slow
def test_the_table_beside_the_published_one(project, tool, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert cli.run(tool.main, ['work_dirs', '--format', 'json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['config'] for row in rows] == ['student', 'crd', 'kd']
    student, crd, kd = rows

    first, second = (_top1(project, 'crd', seed) for seed in (0, 1))
    assert len(first) == len(second) == tables.NUM_EPOCHS
    last = [first[-1], second[-1]]
    assert crd['last']['mean'] == pytest.approx(statistics.fmean(last))
    assert crd['last']['std'] == pytest.approx(statistics.stdev(last))
    assert crd['best']['mean'] == pytest.approx((max(first) + max(second)) / 2)
    assert crd['difference'] == pytest.approx(statistics.fmean(last) - 50)
    assert crd['source'] == 'an invented paper'
    assert crd['seeds'] == [0, 1] and not crd['missing_seeds']
    # The same eight digits as tools/check_config.py shows.
    teacher = sha256(str(project / 'teacher.pth'), 0)
    assert crd['teacher'] == teacher[:8]
    assert [run['run_dir'] for run in crd['runs']] == [
        'work_dirs/crd/seed_0',
        'work_dirs/crd/seed_1',
    ]

    assert student['last']['mean'] == _top1(project, 'student', 0)[-1]
    assert student['last']['std'] is None and student['teacher'] is None
    assert student['missing_seeds'] == [1]
    assert kd['last'] is None and kd['published'] == 45


@pytest.mark.slow
def test_formats_files_and_parts_of_a_table(project, tool, monkeypatch, capsys):
    monkeypatch.chdir(project)
    assert cli.run(tool.main, ['work_dirs']) == 0
    markdown = capsys.readouterr().out
    assert '| config ' in markdown and ' ± ' in markdown
    assert '1 of 2, missing 1' in markdown
    assert cli.run(tool.main, ['work_dirs', '--out', 'tables/t.md']) == 0
    assert (project / 'tables' / 't.md').read_text() == markdown
    assert cli.run(tool.main, ['work_dirs/crd', '--format', 'csv']) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row['seeds'] for row in rows] == ['', '0 1', '']

    # Other published figures, and a run that was interrupted.
    (project / 'other.yml').write_text('Models: [{Name: crd, Published: {Top 1 Accuracy: 12.5}}]\n')
    shutil.copytree('work_dirs', 'partial')
    record = project / 'partial' / 'crd' / 'seed_1' / 'run.json'
    record.write_text(json.dumps(json.loads(record.read_text()) | dict(finished=False, epochs=9)))
    assert cli.run(tool.main, ['partial', '--published', 'other.yml']) == 0
    out = capsys.readouterr().out
    assert '12.50' in out and '50.00 |' not in out
    assert '- crd: seed 1 is at epoch 2 of 9' in out


def test_published_figures_of_the_package_are_found(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Configs beside a metafile of their own, and of the package's folders.
    own = tmp_path / 'own' / 'metafile.yml'
    own.parent.mkdir()
    own.write_text('Models: []')
    found = tool.find_metafiles(
        ['own/a.py', 'own/b.py', 'configs/crd/x.py', 'elsewhere/kd/y.py', 'nowhere/z.py']
    )
    assert [path.resolve() for path in found] == [
        own,
        tables.CONFIGS / 'crd' / 'metafile.yml',
        tables.CONFIGS / 'kd' / 'metafile.yml',
    ]
    for path in found[1:]:
        figures = {figure['config']: figure['published'] for figure in read_metafile(path)}
        configs = {p.stem for p in path.parent.glob('*.py')}
        assert set(figures) <= configs
        assert any(top1 for top1 in figures.values())


@pytest.mark.parametrize(
    'argv, message',
    [
        (['gone'], 'WORK_DIR gone is not a folder'),
        (['.'], 'no run in .: there is no seed_'),
        (['.', '--published', 'gone.yml'], '--published gone.yml does not exist'),
    ],
)
def test_wrong_arguments_are_told(tool, tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert cli.run(tool.main, argv) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and message in error
    assert error.count('\n') == 1
