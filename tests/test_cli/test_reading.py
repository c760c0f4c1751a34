"""Files of unknown origin: one line each, in bounded time."""

import pytest

from crd_plugin.cli import reading
from crd_plugin.cli.comparison import read_table_runs
from crd_plugin.cli.reading import read_text
from crd_plugin.cli.results import read_run
from tests.tables import write_run


@pytest.mark.parametrize(
    'line, message',
    [
        ('[1]', 'line 1 is list, expected names and values'),
        ('{"accuracy/top1": "70", "step": 1}', "top1 is '70', expected float"),
        ('{"accuracy/top1": NaN, "step": 1}', 'top1 is nan, expected'),
        ('{"accuracy/top1": 7.0, "step": 1.5}', 'step is 1.5, expected int'),
        ('[' * 100000, 'line 1 is not JSON'),
        ('{"step": ' + '9' * 5000 + '}', 'line 1 is not JSON: Exceeds the limit'),
    ],
)
def test_log(tmp_path, line, message):
    path = tmp_path / 'a' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(f'{line}\n{{}}\n')
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(epochs='3'), "epochs is '3', expected int"),
        (dict(finished=1), 'finished is 1, expected bool'),
        (dict(options='a=1'), "options is 'a=1', expected list of texts"),
        (dict(seconds='1'), "seconds is '1', expected float or int or null"),
        (dict(options=[1]), 'options is list, expected list of texts'),
        (dict(epochs=True), 'epochs is True, expected int'),
    ],
)
def test_record(tmp_path, changes, message):
    write_run(tmp_path, 'crd_a', 0, (1.0, 2.0, 3.0), **changes)
    with pytest.raises(ValueError, match=f'run.json is damaged .*{message}.* move its folder'):
        read_table_runs([tmp_path])


def test_record_that_is_not_json(tmp_path):
    record = write_run(tmp_path, 'crd_a', 0, (1.0,)) / 'run.json'
    for text in ('[' * 100000, '[1]'):
        record.write_text(text)
        with pytest.raises(ValueError, match='run.json is damaged'):
            read_table_runs([tmp_path])


def test_neither_a_folder_nor_a_large_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, '_MOST', 9)
    (tmp_path / 'a').write_text('0123456789')
    for path, message in (
        (tmp_path / 'a', 'has 10 bytes, expected at most 9'),
        (tmp_path, 'not a'),
    ):
        with pytest.raises(ValueError, match=message):
            read_text(path)
