"""tools/analysis_tools/make_table.py: formats, files and errors."""

import csv
import json

import pytest

from crd_plugin.cli import arguments as cli
from crd_plugin.cli.comparison import read_metafile
from tests import tables

TOOL = 'analysis_tools/make_table.py'


@pytest.fixture(scope='module')
def tool():
    return tables.load_tool(TOOL)


def test_formats_files_and_published_figures(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        assert cli.run(tool.main, list(words)) == 0
        return capsys.readouterr().out

    for seed, top1 in enumerate([(50.0, 54.0, 52.0), (50.0, 51.0, 56.0)]):
        tables.write_run(tmp_path / 'work_dirs', 'own', seed, top1, config='method/own.py')
    (tmp_path / 'method').mkdir()
    figures = 'Models: [{Name: own, Published: {Top 1 Accuracy: 50.0, Source: an invented paper}}]'
    (tmp_path / 'method' / 'metafile.yml').write_text(figures)
    (tmp_path / 'other.yml').write_text(figures.replace('50.0', '12.5'))

    (row,) = json.loads(call('work_dirs', '--format', 'json'))
    assert row['difference'] == 4.0 and row['source'] == 'an invented paper'
    folders = ['work_dirs/own/seed_0', 'work_dirs/own/seed_1']
    assert [run['run_dir'] for run in row['runs']] == folders
    markdown = call('work_dirs')
    for cell in ('| config ', ' 54.00 ± 2.83 ', ' 50.00 |', '|     2 |'):
        assert cell in markdown
    assert not call('work_dirs', '--out', 'tables/t.md')
    assert (tmp_path / 'tables' / 't.md').read_text() == markdown
    (row,) = csv.DictReader(call('work_dirs/own', '--format', 'csv').splitlines())
    assert row['seeds'] == '0 1' and row['published'] == '50.0'
    assert ' 12.50 |' in call('work_dirs/own/seed_0', '--published', 'other.yml')
    page = call('work_dirs', '--format', 'html')
    assert '<h1>Runs in work_dirs</h1>' in page and '<td>54.00 ± 2.83</td>' in page
    assert page.count('<img ') == 2 and 'no checkpoint in work_dirs/own/seed_0' in page


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
