"""tools/analysis_tools/make_table.py: formats, files and errors."""

import csv
import json
import shutil

import pytest

from crd_plugin.cli import arguments as cli
from crd_plugin.cli.comparison import read_metafile
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


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The current folder: CRD was trained with two seeds, the student with one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'method').mkdir()
    (tmp_path / 'method' / 'metafile.yml').write_text(METAFILE)
    for name, seed, top1 in (
        ('crd', 0, (50.0, 54.0, 52.0)),
        ('crd', 1, (50.0, 51.0, 56.0)),
        ('student', 0, (30.0, 31.0, 32.0)),
    ):
        tables.write_run(tmp_path / 'work_dirs', name, seed, top1, config=f'method/{name}.py')
    return tmp_path


def test_the_table_beside_the_published_one(project, tool, capsys):
    assert cli.run(tool.main, ['work_dirs', '--format', 'json']) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['config'] for row in rows] == ['student', 'crd', 'kd']
    student, crd, kd = rows
    assert crd['last'] == dict(mean=54.0, std=pytest.approx(8**0.5))
    assert crd['best']['mean'] == 55.0
    assert crd['difference'] == 4.0 and crd['source'] == 'an invented paper'
    assert crd['seeds'] == [0, 1] and not crd['missing_seeds']
    folders = ['work_dirs/crd/seed_0', 'work_dirs/crd/seed_1']
    assert [run['run_dir'] for run in crd['runs']] == folders
    assert crd['runs'][0]['best'] == dict(epoch=2, top1=54.0, top5=99.0)
    assert student['last'] == dict(mean=32.0, std=None) and student['missing_seeds'] == [1]
    assert kd['last'] is None and kd['published'] == 45


def test_formats_files_and_parts_of_a_table(project, tool, capsys):
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
    assert '- crd: seed 1 is at epoch 3 of 9' in out


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
