"""tools/demo.py: end to end with one epoch, and each of its errors."""

import json
import re

import pytest

from crd_plugin.cli import arguments as cli
from tests import tables


@pytest.fixture(scope='module')
def demo():
    return tables.load_tool('demo.py')


@pytest.mark.slow
def test_end_to_end_and_restart(demo, tmp_path, monkeypatch, capsys):
    """Three trainings of one epoch; then what a second call does."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    work_dir = tmp_path / 'demo'
    args = ['--methods', 'crd', '--work-dir', str(work_dir)]
    args += ['--cfg-options', 'train_cfg.max_epochs=1']
    assert cli.run(demo.main, args) == 0
    out = capsys.readouterr().out
    assert '2/2 (demo): CRD, seed 0: new -> ' in out
    # MMEngine's own line with loss and bound is shown.
    assert 'distill.loss_crd' in out and 'mi_bound' in out

    content = json.loads((work_dir / 'results.json').read_text())
    assert content['command'].startswith('python tools/demo.py --methods crd')
    assert content['machine']['torch'] and content['machine']['cores'] >= 1
    names = [row['name'] for row in content['summary']]
    assert names == ['teacher (resnet14)', 'student alone (resnet8w4)', 'CRD']
    folders = ('teacher', 'vanilla_seed0', 'crd_seed0')
    for run, folder in zip(content['runs'], folders, strict=True):
        (values,) = tables.read_logs(work_dir / folder)
        assert run['last']['top1'] == values['accuracy/top1'] == run['top1'][0]
        assert run['best']['top5'] == values['accuracy/top5'] == run['top5'][0]
        assert run['seconds'] > 0 and run['epochs'] == [1] and run['seed'] == 0
        assert f'{run["last"]["top1"]:.2f}' in out
    page = (work_dir / 'report.html').read_text()
    assert page.count('data:image/png;base64,iVBOR') == 4 and 'Not shown' not in page

    # Finished runs are kept: nothing is trained, the numbers are the same.
    assert cli.run(demo.main, args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ['1 finished run(s) kept', '2 finished run(s) kept', '']
    again = json.loads((work_dir / 'results.json').read_text())
    assert again['runs'] == content['runs']


def test_seeds_and_methods(demo):
    for words, seeds in (
        ([], [0]),
        (['--seeds', '3'], [0, 1, 2]),
        (['--seeds', '0', '3', '7'], [0, 3, 7]),
        (['--seeds', '5,'], [5]),
        (['--seeds', '0 2'], [0, 2]),
    ):
        assert demo.parse_args(words).seeds == seeds
    assert demo.parse_args(['--methods', 'kd crd,kd', 'at']).methods == ['kd', 'crd', 'at']
    assert demo.parse_args(['--methods']).methods == []  # the student alone


def test_one_teacher_serves_all_seeds(demo, tmp_path):
    tmp_path /= 'my, demo'
    words = ['--methods', 'kd', '--seeds', '4,9', '--work-dir', str(tmp_path)]
    teacher, students = demo.plan(demo.parse_args(words))
    folders = 'teacher vanilla_seed4 kd_seed4 vanilla_seed9 kd_seed9'.split()
    assert [run.run_dir for run in (teacher, *students)] == [tmp_path / name for name in folders]
    assert [(run.name, run.seed) for run in (teacher, *students[2:])] == [
        ('teacher (resnet14)', 4),
        ('student alone (resnet8w4)', 9),
        ('KD', 9),
    ]
    weights = str(tmp_path / 'teacher' / 'epoch_100.pth')
    assert [run.missing for run in students] == [None, ('model.teacher_ckpt', weights)] * 2
    assert students[1].options == ['randomness.seed=4', f'model.teacher_ckpt="{weights}"']


@pytest.mark.parametrize(
    'words, message',
    [
        (['--seeds', 'x'], '--seeds x: expected a count'),
        (['--jobs', '0'], '--jobs 0: at least 1 training'),
        (['--seeds', '0'], '--seeds 0: expected a count of at least 1'),
        (['--methods', 'magic'], r'--methods magic: .* available: .*crd'),
        (['--methods', 'crd_resnet14'], r'.* no configs/\*/crd_resnet14_resnet14_'),
    ],
)
def test_wrong_arguments_end_with_one_line(demo, capsys, words, message):
    assert cli.run(demo.main, words) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and re.match(f'error: {message}', error)


@pytest.fixture
def fake(demo, monkeypatch, tmp_path):
    """Let the demo "train" in no time; returns the folders that it trained."""
    trained = []

    def train(run, trainings, on_epoch, env):
        assert run.state != 'done' and not run.missing
        trained.append(run.run_dir.name + (' resumed' if run.reached else ''))
        run.run_dir.mkdir(exist_ok=True)
        (run.run_dir / f'epoch_{run.settings.epochs}.pth').write_text(run.title)
        run._write_record(finished=True, seconds=1.0)

    monkeypatch.setattr(demo.Run, 'train', train)
    monkeypatch.setattr(demo, 'report', lambda *args: 'the table')

    def call(*words):
        trained.clear()
        assert cli.run(demo.main, ['--work-dir', str(tmp_path), *words]) == 0
        return list(trained)

    return call


def test_only_what_is_missing_is_trained(fake, tmp_path, capsys):
    methods = ['--methods', 'kd']
    assert fake(*methods) == ['teacher', 'vanilla_seed0', 'kd_seed0']
    assert fake(*methods, '--seeds', '2') == ['vanilla_seed1', 'kd_seed1']
    assert '2 finished run(s) kept' in capsys.readouterr().out
    # Another first seed is another teacher; students without one stay.
    assert fake(*methods, '--seeds', '1,0') == ['teacher', 'kd_seed1', 'kd_seed0']
    (tmp_path / 'teacher' / 'epoch_100.pth').write_text('other weights')
    assert fake(*methods, '--seeds', '1,0') == ['kd_seed1', 'kd_seed0']


def test_a_failure_stops_the_demo(demo, fake, monkeypatch, tmp_path, capsys):
    def train(run, trainings, on_epoch, env):
        raise ValueError('the cause')

    monkeypatch.setattr(demo.Run, 'train', train)
    with pytest.raises(SystemExit, match='1'):
        fake()
    out, error = capsys.readouterr()
    assert 'the cause' in error and 'the table' not in out and 'student alone' not in out


def test_interrupted_runs_start_over_unless_told_to_resume(fake, tmp_path):
    fake('--methods', 'kd')
    for words, trained in (([], 'kd_seed0'), (['--resume'], 'kd_seed0 resumed')):
        folder = tmp_path / 'kd_seed0'
        record = json.loads((folder / 'demo_run.json').read_text())
        (folder / 'demo_run.json').write_text(json.dumps(record | dict(finished=False)))
        (folder / 'epoch_100.pth').rename(folder / 'epoch_7.pth')
        assert fake('--methods', 'kd', *words) == [trained]
        assert (folder / 'epoch_7.pth').exists() == bool(words)


def test_fashion_mnist_is_planned_with_a_teacher_of_its_own_schedule(demo, tmp_path):
    def plan(*words):
        args = ['--data', 'fashion-mnist', '--work-dir', str(tmp_path), *words]
        return demo.plan(demo.parse_args(args))

    teacher, (alone, *students) = plan()
    assert teacher.settings.path.name == 'vanilla_resnet20_b64-12e_fashion-mnist.py'
    titles = 'KD,FitNet,AT,CRD,CRD+KD,CKTF,CoCoRD,CRD in-batch,InfoNCE'.split(',')
    assert [run.name for run in (alone, *students)] == ['student alone (resnet8)', *titles]
    assert not alone.missing
    assert {run.missing[1] for run in students} == {str(tmp_path / 'teacher' / 'epoch_12.pth')}
    data = [run.settings.config.train_dataloader.dataset.dataset for run in (teacher, alone)]
    assert [one.num_train_per_class for one in data] == [None, 500]
    assert demo.parse_args(['--data', 'fashion-mnist']).work_dir.name == 'fashion-mnist'

    others = 'sp rkd pkt cc vid ab ft fsp nst kdsvd dkd lskd rrd online-kd'
    _, (_, *students) = plan('--methods', others)
    assert [run.run_dir.name for run in students] == [f'{word}_seed0' for word in others.split()]
    epochs = {run.name: run.settings.epochs for run in students}
    assert {name for name, number in epochs.items() if number == 70} == {'AB', 'FT', 'FSP'}
    assert set(epochs.values()) == {40, 70}
    assert [run.name for run in students if not run.missing] == ['Online KD']  # needs no teacher


def test_students_share_the_cores_and_the_teacher_has_all(demo, monkeypatch, tmp_path):
    devices = []
    monkeypatch.setattr('crd_plugin.cli.pool.train_all', lambda *args: devices.append(args[1]))
    monkeypatch.setattr(demo, 'report', lambda *args: '')
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    assert cli.run(demo.main, ['--work-dir', str(tmp_path), '--jobs', '3']) == 0
    assert devices == [[('demo', {})], [('demo', dict(OMP_NUM_THREADS='2'))] * 3]


def test_report_of_several_seeds(demo, tmp_path):
    """Tables, file of results and figures, of runs that are written here."""
    words = ['--methods', 'kd', '--seeds', '2', '--work-dir', str(tmp_path)]
    args = demo.parse_args(words)
    teacher, students = demo.plan(args)
    for run, top1 in zip((teacher, *students), (94.0, 80.0, 90.0, 82.0, 92.5), strict=True):
        tables.write_log(run.run_dir, {1: top1})
        run.teacher = 'ab12' if run.name == 'KD' else ''
        run._write_record(finished=True, seconds=1.0)
    text = demo.report([teacher, *students], args, words)
    assert '| student alone (resnet8w4) |     2 | 81.00 ± 1.41 |' in text
    half = 12.7062 * 0.25  # of 10.0 and 10.5
    expected = f'+10.25 [+{10.25 - half:.2f}, +{10.25 + half:.2f}] *'
    assert re.search(rf'KD +\| +{re.escape(expected)} \| +- \|', text)
    written = (tmp_path / 'results.md').read_text()
    assert text in written and 'paired by seed' in written and '- teacher: SHA-256 ab12' in written
    content = json.loads((tmp_path / 'results.json').read_text())
    assert content['differences']['last - student alone']['KD']['mean'] == 10.25
    assert [run['teacher'] for run in content['runs']] == ['', '', 'ab12', '', 'ab12']
    page = (tmp_path / 'report.html').read_text()
    assert '>+10.25 [' in page and page.count('data:image/png;base64,iVBOR') == 2
    assert 'KD, t-SNE and correlation: no checkpoint in' in page
