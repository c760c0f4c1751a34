"""tools/analysis_tools/make_table.py: formats, files and errors."""

import csv
import json
from pathlib import Path

import pytest

from crd_plugin.cli import arguments as cli
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
    Path('own.csv').write_text(
        'source,table,dataset,metric,value,config,checkpoint\n'
        'an invented paper,,Digits,top-1 %,50.0,method/own.py,\n'
    )

    (row,) = json.loads(call('work_dirs', '--published', 'own.csv', '--format', 'json'))
    assert row['difference'] == 4.0 and row['source'] == 'an invented paper'
    folders = ['work_dirs/own/seed_0', 'work_dirs/own/seed_1']
    assert [run['run_dir'] for run in row['runs']] == folders
    markdown = call('work_dirs')
    for cell in ('| config ', ' 54.00 ± 2.83 ', '|     2 |'):
        assert cell in markdown
    assert not call('work_dirs', '--out', 'tables/t.md')
    assert (tmp_path / 'tables' / 't.md').read_text() == markdown
    assert call('work_dirs', '--plot', 'plots/teachers.png') == markdown
    assert (tmp_path / 'plots' / 'teachers.png').read_bytes()[:4] == b'\x89PNG'
    (row,) = csv.DictReader(call('work_dirs/own', '--format', 'csv').splitlines())
    assert row['seeds'] == '0 1' and row['published'] == ''
    page = call('work_dirs', '--format', 'html')
    assert '<h1>Runs in work_dirs</h1>' in page and '>54.00 ± 2.83</td>' in page
    assert page.count('<img ') == 2 and 'no checkpoint in work_dirs/own/seed_0' in page


def test_figures_of_the_package_are_the_default(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tables.write_run(tmp_path, 'kd_wrn40-2_wrn16-2_b64-240e_cifar100', 0, (1.0, 2.0, 75.0))
    assert cli.run(tool.main, ['.', '--format', 'csv']) == 0
    rows = {row['config']: row for row in csv.DictReader(capsys.readouterr().out.splitlines())}
    assert rows['kd_wrn40-2_wrn16-2_b64-240e_cifar100']['difference'] == '0.08'
    # The other pairs of CIFAR-100.
    assert len(rows) == 13 and rows['kd_vgg13_vgg8_b64-240e_cifar100']['published'] == '72.98'


def test_wrong_arguments_are_told(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tables.write_run(tmp_path, 'own', 0, (1.0,))
    Path('file').touch()
    for argv, message in (
        (['gone'], 'no run in gone: there is no seed_'),
        (['.', '--published', 'gone.csv'], 'gone.csv is not a file'),
        (['.', '--out', 'own'], '--out own is a folder, expected a file'),
        (['.', '--out', 'file/t.md'], 'file: File exists'),
        (['.', '--plot', 'x.xyz'], '--plot x.xyz: expected a file that ends in one of .'),
    ):
        assert cli.run(tool.main, argv) == 1
        error = capsys.readouterr().err
        assert error.startswith(f'error: {message}') and error.count('\n') == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ['file', 'own']
