"""tools/demo.py: end to end with one epoch, and each of its errors."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
SCRIPT = REPO / 'tools' / 'demo.py'


def _load():
    spec = importlib.util.spec_from_file_location('crd_demo', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def demo():
    return _load()


def _run(*args):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, args)], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_end_to_end_restart_and_failure(tmp_path):
    """Three trainings of one epoch; then what a second call does."""
    work_dir = tmp_path / 'demo'
    args = ['--methods', 'crd', '--work-dir', work_dir, '--cfg-options', 'train_cfg.max_epochs=1']
    first = _run(*args)
    assert first.returncode == 0, first.stdout + first.stderr
    assert 'run 3/3: CRD, seed 0' in first.stdout
    # MMEngine's own line with loss and bound is shown.
    assert 'distill.loss_crd' in first.stdout and 'mi_bound' in first.stdout

    content = json.loads((work_dir / 'results.json').read_text())
    assert content['command'].startswith('python tools/demo.py --methods crd')
    assert content['machine']['torch'] and content['machine']['cores'] >= 1
    names = [row['name'] for row in content['summary']]
    assert names == ['teacher (resnet14)', 'student alone (resnet8w4)', 'CRD']
    for run, folder in zip(content['runs'], ('teacher', 'vanilla_seed0', 'crd_seed0')):
        logged = [
            json.loads(line)
            for log in (work_dir / folder).glob('*/vis_data/scalars.json')
            for line in log.read_text().splitlines()
        ]
        values = [e for e in logged if 'accuracy/top1' in e]
        assert len(values) == 1
        assert run['last']['top1'] == values[0]['accuracy/top1']
        assert run['best']['top5'] == values[0]['accuracy/top5']
        assert run['seconds'] > 0
        assert f'{run["last"]["top1"]:.2f}' in first.stdout
    assert '| CRD ' in (work_dir / 'results.md').read_text()
    assert (work_dir / 'curves.png').read_bytes()[:4] == b'\x89PNG'

    # Finished runs are kept: nothing is trained, the numbers are the same.
    second = _run(*args)
    assert second.returncode == 0, second.stderr
    assert '3 finished runs are kept' in second.stdout
    assert 'run 1/' not in second.stdout
    again = json.loads((work_dir / 'results.json').read_text())
    assert again['runs'] == content['runs']

    # A failing run stops the demo with the last lines and the log's path.
    # Other options mean other runs: the finished teacher is moved aside.
    broken = _run(
        '--methods',
        'kd',
        '--work-dir',
        work_dir,
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=0',
    )
    assert broken.returncode == 1
    assert 'batch_size' in broken.stderr
    assert f'The log is {work_dir / "teacher" / "train.log"}' in broken.stderr
    assert '| method' not in broken.stdout
    assert (work_dir / 'teacher_old1' / 'teacher.pth').is_file()


def _args(demo, *words):
    return demo.parse_args([str(word) for word in words])


@pytest.mark.parametrize(
    'words, seeds',
    [
        ([], [0]),
        (['--seeds', 3], [0, 1, 2]),
        (['--seeds', 0, 3, 7], [0, 3, 7]),
        (['--seeds', '5,'], [5]),
        (['--seeds', '0 2'], [0, 2]),
    ],
)
def test_seeds(demo, words, seeds):
    assert _args(demo, *words).seeds == seeds


def test_methods_are_split_and_planned(demo, tmp_path):
    args = _args(demo, '--methods', 'kd crd', 'kd', '--seeds', '4,9', '--work-dir', tmp_path)
    assert args.methods == ['kd', 'crd']
    teacher, students = demo.plan(args)
    assert [(run.name, run.seed) for run in (teacher, *students)] == [
        ('teacher (resnet14)', 4),
        ('student alone (resnet8w4)', 4),
        ('KD', 4),
        ('CRD', 4),
        ('student alone (resnet8w4)', 9),
        ('KD', 9),
        ('CRD', 9),
    ]
    assert [run.needs_teacher for run in students] == [False, True, True, False, True, True]
    assert len({run.run_dir for run in students}) == 6
    config = students[1].load_config()
    assert config.model.teacher_ckpt == str(tmp_path / 'teacher/teacher.pth')
    assert config.randomness.seed == 4


def test_a_method_without_a_teacher(demo, tmp_path):
    config = demo.find_config('online-kd')
    assert config.name == 'online-kd_resnet8w4_b20-100e_digits.py'
    args = _args(demo, '--methods', 'online-kd kd', '--work-dir', tmp_path)
    _, (_, online, kd) = demo.plan(args)
    assert online.name == 'Online KD' and kd.name == 'KD'
    assert not online.needs_teacher and kd.needs_teacher
    assert online.run_dir == tmp_path / 'online-kd_seed0'
    model = online.load_config().model
    assert model.type == 'crd_plugin.OnlineEnsembleDistill'
    # The option would be refused as an argument that it does not have.
    assert 'teacher_ckpt' not in model and 'teacher' not in model


def test_every_default_method_has_its_config(demo):
    for method in demo.METHODS.split():
        assert demo.find_config(method).is_file()


@pytest.mark.parametrize(
    'words, message',
    [
        (['--seeds', 'x'], '--seeds x: expected a count'),
        (['--seeds', '0'], 'at least one seed'),
        (['--methods', 'magic'], r'--methods magic: .* available: .*crd'),
        (['--methods', 'vanilla'], '--methods vanilla: there is no configs'),
        (['--methods', 'crd_resnet14'], r'no configs/\*/crd_resnet14_resnet14_'),
    ],
)
def test_wrong_arguments_are_told(demo, words, message):
    with pytest.raises(demo.DemoError, match=message):
        demo.plan(_args(demo, *words))


def test_wrong_arguments_end_with_one_line(demo, capsys):
    assert demo.main(['--seeds', '0']) == 1
    error = capsys.readouterr().err
    assert error.startswith('error: --seeds 0') and error.count('\n') == 1


def test_a_foreign_folder_is_left_alone(demo, tmp_path, capsys):
    foreign = tmp_path / 'teacher' / 'thesis.tex'
    foreign.parent.mkdir()
    foreign.write_text('precious')
    assert demo.main(['--work-dir', str(tmp_path)]) == 1
    assert 'no run of this demo' in capsys.readouterr().err
    assert foreign.read_text() == 'precious'


def test_a_run_counts_as_finished_only_with_equal_config_and_teacher(demo, tmp_path):
    _, students = demo.plan(_args(demo, '--work-dir', tmp_path))
    run = students[2]
    assert not demo.finished(run, 'abc')
    run.run_dir.mkdir()
    record = dict(signature=run.signature(), teacher='abc', finished=True, seconds=7.5)

    def write(**changes):
        (run.run_dir / demo.RECORD).write_text(json.dumps(record | changes))

    write()
    assert demo.finished(run, 'abc') and run.seconds == 7.5
    assert not demo.finished(run, 'other teacher')
    write(finished=False)
    assert not demo.finished(run, 'abc')
    write(signature='of another config')
    assert not demo.finished(run, 'abc')
    write()
    run.options.append('train_cfg.max_epochs=3')
    assert not demo.finished(run, 'abc')


def test_progress_shows_mmengines_lines_and_the_time_left(demo, tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr('time.perf_counter', lambda: now[0])
    run = demo.Run('KD', Path('kd.py'), 0, tmp_path, [])
    with demo.Display(num_runs=4) as display:
        display.start(run, position=2, epochs=20)
        now[0] = 130.0
        for epoch in range(1, 11):
            display.update(epoch, False, f'Epoch(train)  [{epoch}]  loss: 1')
            display.update(epoch, True, f'Epoch(val) [{epoch}]  top1: 9')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('run 2/4: KD, seed 0 -> ')
    # Every second of twenty epochs. After ten of the second run, 1.5 of four
    # runs are done in 30 s: 50 s are left.
    assert len(lines) == 1 + 2 * 5
    assert lines[-1] == '  [2/4 0:50 left] Epoch(val) [10] top1: 9'
    assert lines[-2].endswith('Epoch(train) [10] loss: 1')
