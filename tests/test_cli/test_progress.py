"""Progress lines, and the time that is left."""

import pytest

from crd_plugin.cli.progress import Display


def test_only_what_was_trained_here_counts(monkeypatch):
    now = [0.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    # One resumed after 50 of 100 epochs, and two whole runs.
    display = Display(work=2.5)
    with display.run('resumed', 100, reached=50) as resumed:
        with display.run('whole', 100) as whole:
            assert display.left == '?'
            now[0] = 60.0
            resumed(75, True, '')
            whole(25, True, '')
            # Half a run in a minute, two are left.
            assert display.done == 0.5 and display.left == '4:00'
        # What a failed run leaves undone is not waited for.
        assert display.done == 0.5 and display.left == '2:30'
        resumed(100, True, '')
    assert display.done == 0.75 and display.left == '1:20'


def test_one_line_of_each_kind_in_every_tenth_is_shown(capsys):
    with Display(1) as display, display.run('KD, seed 0', 30) as on_epoch:
        for epoch in range(1, 31):
            for kind, validated in (('train', False), ('train', False), ('val', True)):
                on_epoch(epoch, validated, f'Epoch({kind})   [{epoch}]  text')
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition('] ')[2] for line in lines] == [
        f'Epoch({kind}) [{epoch}] text' for epoch in range(3, 31, 3) for kind in ('train', 'val')
    ]
    assert all(line.startswith('  [KD, seed 0, 0:00 left] ') for line in lines)


def test_bars_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr('sys.stdout.isatty', lambda: True)
    with Display(2) as display, display.run('KD, seed 0', 1) as on_epoch:
        on_epoch(1, True, 'the line')
        display.say('said [above]')
    shown = capsys.readouterr().out
    for text in ('all runs', '50%', 'KD, seed 0', '100%', 'the line', 'said [above]'):
        assert text in shown


def test_trainings_do_not_depend_on_a_reader(monkeypatch):
    def broken(text):
        raise BrokenPipeError

    monkeypatch.setattr('sys.stdout.write', broken)
    Display(1).say('nobody reads this')
    with pytest.raises(BrokenPipeError):
        broken('')
