"""Files of unknown origin: one line each, in bounded time."""

import pytest

from crd_plugin.cli import reading
from crd_plugin.cli.arguments import UsageError
from crd_plugin.cli.runs import read_record
from tests.tables import write_run


@pytest.mark.parametrize(
    'text, message',
    [
        ('[1]', r'file is \[1\], expected names and values'),
        ('{"number": "70"}', "file: number is '70', expected float | int"),
        ('{"number": NaN}', 'number is nan, expected'),
        ('{"count": 1.5}', 'count is 1.5, expected int'),
        ('{"count": true}', 'count is True, expected int'),
        ('{"done": 1}', 'done is 1, expected bool'),
        ('{"texts": "a=1"}', "texts is 'a=1', expected list of texts"),
        ('{"texts": [1]}', r'texts is \[1\], expected list of texts'),
        ('[' * 100000, 'file is not JSON: it has more than 500 brackets'),
        ('{"count": ' + '9' * 5000 + '}', 'file is not JSON: Exceeds the limit'),
    ],
)
def test_json(text, message):
    kinds = dict(number=float | int, count=int, done=bool, texts=list)
    assert reading.parse_json('{"number": 1, "other": null}', '', kinds) == dict(
        number=1, other=None
    )
    with pytest.raises(UsageError, match=message):
        reading.parse_json(text, 'file', kinds)


def test_record(tmp_path):
    path = write_run(tmp_path, 'crd_a', 0, (1.0,), seconds='1') / 'run.json'
    kind = r"seconds is '1', expected float \| int \| None"
    with pytest.raises(UsageError, match=f'run.json is damaged .*{kind}.* move its folder'):
        read_record(path)
    path.write_text('{"seed": 1}')
    with pytest.raises(
        UsageError, match=r'run.json is damaged \(it lacks config, epochs, finished'
    ):
        read_record(path)


def test_neither_a_folder_nor_a_large_file_nor_bytes_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, '_MOST', 9)
    for name, content, message in (
        ('', b'', 'is not a file'),
        ('a', b'0123456789', 'has 10 bytes, expected at most 9'),
        ('b', b'\xff\xfe', 'is not a text: invalid start byte at byte 0'),
    ):
        if name:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=message):
            reading.read_text(tmp_path / name)
