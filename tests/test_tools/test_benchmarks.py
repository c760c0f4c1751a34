"""The benchmarks run, write what they promise and add times up rightly."""

import itertools
import json
import os
import subprocess
import sys
from importlib import import_module as load
from pathlib import Path
from sysconfig import get_path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope

from crd_plugin.models import CRDLoss
from tests import fake_data, tables

KD = str(tables.KD)


@pytest.fixture(autouse=True)
def _same_threads(monkeypatch):
    monkeypatch.syspath_prepend(tables.REPO / 'tools' / 'benchmarks')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # restored, whatever a script sets
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run a benchmark on one thread; returns what it wrote as JSON and to stdout."""

    def run(script, words):
        target = tmp_path / 'result.json'
        words = [*words.split(), '--threads', '1', '--json', str(target)]
        monkeypatch.setattr(sys, 'argv', [script, *words])
        load(script).main()
        return json.loads(target.read_text()), capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    'words, message',
    [
        ('crd_loss --rounds 0', 'argument --rounds: is 0, expected at least 1'),
        ('crd_loss --vary kernel', '--vary kernel: expected KEY=VALUE'),
        ('crd_loss --json no/such/folder.json', '--out: is no/such/folder.json, expected a file'),
        ('crd_loss --device cuda', 'no GPU is available; use --device cpu'),
        (f'train_step {KD} --vary model.compile', 'model.compile: expected KEY=VALUE'),
        (f'train_step {KD} --device cpu --check-sync', '--check-sync looks for waits on a'),
        (f'train_step {KD} --synthetic', 'has no stand-in for the Digits of '),
        ('train_step configs/kd/kd_resnet14_digits.py', 'does not exist; the nearest are'),
        ('gpu_report --device cpu --out setup.py/report', '--out is setup.py/report, expected a f'),
        ('gpu_report', 'no GPU is available; --device cpu tries the report itself'),
    ],
)
def test_wrong_arguments(monkeypatch, capsys, words, message):
    script, *rest = words.split()
    monkeypatch.setattr(sys, 'argv', [script, *rest])
    with pytest.raises(SystemExit) as caught:
        load(script).main()
    assert message in f'{caught.value.code} {capsys.readouterr().err}'


def test_turns_rotate():
    order = []
    turns = {name: lambda name=name: order.append(name) or len(order) for name in 'abc'}
    assert load('timing').take_turns(turns, 3) == dict(a=[1, 6, 8], b=[2, 4, 9], c=[3, 5, 7])
    assert ''.join(order) == 'abcbcacab'


# --- objectives ------------------------------------------------------------ #


def test_crd_loss(run):
    words = '--size smoke --rounds 1 --modes sampled shared all --dtypes float32 bfloat16'
    vary = '--vary sharded=True exclude=instance'
    cases, out = run('crd_loss', f'{words} {vary}')
    assert 'B=8 N=1000 K=64 D=16' in out
    # Two directions, two products each, 2 FLOP per multiplication.
    once = 2 * 2 * 2 * 8 * 16
    flop = dict(mmrazor=65, plain=1000, sampled=64, shared=64, all=1000)
    names = [
        f'{mode}{more}{dtype}'
        for mode in list(flop)[2:]
        for more in ('', ' sharded=True exclude=instance')
        for dtype in ('', ' bfloat16')
    ]
    assert [case['name'] for case in cases] == ['mmrazor', 'plain', *names]
    for case in cases:
        seconds, name = case['seconds'], case['name']
        assert case['flop'] == once * flop[name.split()[0]]
        assert seconds > 0 and case['peak_mib'] > 0 and case['build_seconds'] > 0
        assert case['reference_seconds'] == cases[0]['seconds']
        assert case['ratio'] == pytest.approx(case['reference_seconds'] / seconds)
        assert case['ceiling_gflop_per_second'] > 0 and case['ceiling_gbyte_per_second'] > 0
        assert case['gflop_per_second'] == pytest.approx(case['flop'] / seconds / 1e9)
        assert case['gbyte_per_second'] == pytest.approx(case['bytes'] / seconds / 1e9)
        assert {'draw_seconds', 'index_seconds'} <= set(case)
        assert f'\n{name:<7}' in out


def test_plain_is_the_objective_on_given_ids():
    """Loss, gradients and rows of two steps; the first one sets Z."""
    torch.manual_seed(0)
    samples, width, negatives = 40, 8, 16
    loss = CRDLoss(width, negatives)
    loss.bank.resize(samples, torch.arange(samples) % 4, seed=0)
    plain = load('crd_loss').PlainCRD(samples, negatives, width)
    for name in ('student', 'teacher'):
        getattr(plain, name).copy_(getattr(loss.bank, name))
    for _ in range(2):
        idx = torch.randperm(samples)[:5]
        ids = torch.cat([idx[:, None], torch.randint(samples, (5, negatives))], 1)
        feats = [F.normalize(torch.randn(5, width), dim=1).requires_grad_() for _ in range(2)]
        copies = [feat.detach().clone().requires_grad_() for feat in feats]
        expected = loss(*feats, idx, contrast_idx=ids)
        found = plain(*copies, idx, ids)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        expected.backward()
        found.backward()
        loss.bank.commit()
        plain.update(*copies, idx)
        for copy, feat in zip(copies, feats, strict=True):
            torch.testing.assert_close(copy.grad, feat.grad, atol=1e-4, rtol=1e-4)
        for name in ('student', 'teacher'):
            torch.testing.assert_close(getattr(plain, name), getattr(loss.bank, name))


def test_against_repdistiller(monkeypatch, tmp_path, run, capsys):
    """Losses of the same ids are those of the original, here MMRazor's copy in a checkout."""
    fake_data.write_fashion_mnist(tmp_path / 'data' / 'fashion-mnist')
    (tmp_path / 'clone' / 'crd').mkdir(parents=True)
    text = 'from against_repdistiller import MMRazorCRD as CRDLoss\n'
    (tmp_path / 'clone' / 'crd' / 'criterion.py').write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.Tensor, 'cuda', torch.Tensor.cuda)  # restored
    cases, out = run('against_repdistiller', 'clone --epochs 2 --per-class 4 --batch-size 16')
    original, same, drawn = (case['losses'] for case in cases)
    assert len(original) == 2 * 3  # 40 images
    assert same == pytest.approx(original, rel=1e-4)
    assert drawn != pytest.approx(original, rel=1e-4)
    assert min(original) > 0 and '\n   6  ' in out and 'random weights' in out
    for case in cases:
        assert 0 < case['objective'] < case['step']
    monkeypatch.setattr(sys, 'argv', ['against_repdistiller', str(tmp_path)])
    load('against_repdistiller').main()
    assert f'Skipped: {tmp_path} is no checkout of RepDistiller' in capsys.readouterr().out


# --- data loaders ---------------------------------------------------------- #


def test_every_loader_is_measured(run):
    words = '--data digits --batch-size 10 --workers 0 1 --negatives 20 --rounds 2 --batches 3'
    result, out = run('data_pipeline', f'{words} --device cpu')
    names = ['plain, 0 workers', 'plain, 1 worker', 'contrast_idx', 'resident']
    assert [case['name'] for case in result['cases']] == names
    for case in result['cases']:
        assert 0 < case['fastest'] <= case['seconds'] <= case['slowest']
        assert case['images_per_second'] == pytest.approx(10 / case['seconds'])
        assert case['ratio'] > 0
        assert f'\n{case["name"]:<16}' in out
    assert result['cases'][0]['ratio'] == 1
    assert result['args']['negatives'] == 20
    assert '1 threads' in result['machine']
    assert out.startswith('digits, batch 10, cpu')


def test_what_workers_hold_ready_is_not_counted(tmp_path):
    args = dict(data='digits', workers=[1], negatives=2, batch_size=4, batches=3, device='cpu')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        turns = load('data_pipeline').make_turns(SimpleNamespace(**args), tmp_path)
    ahead = {name: turn.args[1] for name, turn in turns.items()}
    assert ahead == {'plain, 1 worker': 2, 'contrast_idx': 0, 'resident': 0}


def test_images_of_short_batches_are_counted(monkeypatch):
    now = itertools.count()
    monkeypatch.setattr('torch.utils.benchmark.timer', lambda: next(now))
    # Of the four steps the first two are not timed: 4 + 2 images in a second.
    assert load('data_pipeline').turn(iter([4, 4, 4, 2]), 1, 2) == pytest.approx(1 / 6)


@pytest.mark.parametrize('kind', ['CIFAR100', 'ImageNet'])
def test_stand_in(monkeypatch, tmp_path, kind):
    stand_in = load('stand_in')
    _, _, height, width, files = stand_in.KINDS[kind]
    monkeypatch.setitem(stand_in.KINDS, kind, (30, 10, height, width, files))
    steps = [dict(type='mmpretrain.PackInputs')]
    if files:
        steps.insert(0, dict(type='mmpretrain.LoadImageFromFile'))
    dataset = dict(type=kind, data_root='nowhere', pipeline=steps)
    loader = ConfigDict(dataset=dict(type='crd_plugin.SampleIndexDataset', dataset=dataset))
    stand_in.replace_dataset(loader, 'config.py', tmp_path)
    dataset = stand_in.DATASETS.build(loader.dataset)
    dataset.full_init()
    assert len(dataset) == dataset.num_samples == 30
    assert np.array_equal(dataset.get_gt_labels(), np.arange(30) % 10)
    for index in (0, 17):
        item = dataset[index]
        assert item['inputs'].shape == (3, height, width)
        assert item['inputs'].dtype == torch.uint8
        assert item['inputs'].float().std() > 20
        assert int(item['data_samples'].gt_label) == index % 10
        assert item['data_samples'].sample_idx == index
    assert files or not torch.equal(dataset[0]['inputs'], dataset[1]['inputs'])


# --- whole steps ----------------------------------------------------------- #


def test_steps_of_the_digits(run):
    varied = 'model.channels_last=True optim_wrapper.optimizer.lr=0.01'
    words = f'{KD} {tables.CRD} --vary {varied} --iters 2 --rounds 1 --warmup 1 --num-workers 0'
    words += ' --cfg-options train_dataloader.batch_size=8 --device cpu'
    result, out = run('train_step', words)
    cases = result['cases']
    names = [f'kd_{tables.PAIR}', f'crd_{tables.PAIR}', varied]
    assert [case['name'] for case in cases] == names
    assert all(name in out for name in names)
    assert cases[0]['ratio'] == 1
    for case in cases:
        assert case['batch_size'] == 8
        assert case['images_per_second'] == pytest.approx(8 / case['seconds'])
        parts = case['parts']
        # One round: nothing but the end of the last step is missing.
        assert 0 < sum(parts.values()) <= case['seconds']
        assert case['peak_mib'] > 0
        assert all(seconds > 0 for seconds in parts.values())
    assert result['waits'] == {}


def test_rounds_are_summarised():
    step = load('train_step')

    class Case:
        def __init__(self, name, size, rounds):
            self.name, self.batch_size = name, size
            self.rounds = [dict.fromkeys(step.PARTS, 0.0) | one for one in rounds]

        def turn(self, warmup, iters):
            return self.rounds.pop(0)

        def warm_up(self):
            pass

        do = print

    seconds = [(0.1, 0.05), (0.2, 0.1), (0.15, 0.025)]  # per image
    first = Case('a', 10, [dict(whole=whole, data=data) for whole, data in seconds])
    # The ratios are 2, 1 and 4 thirds.
    other = Case('b', 5, [dict(whole=0.2)] * 3)
    args = SimpleNamespace(rounds=3, warmup=1, iters=1, device='cpu')
    one, two = step.measure([first, other], args)
    assert one['ratio'] == 1 and one['seconds'] == pytest.approx(1.5)
    assert one['fastest'] == 1 and one['slowest'] == 2
    assert one['images_per_second'] == pytest.approx(20 / 3)
    assert one['parts']['data'] == pytest.approx(0.5)
    assert two['ratio'] == pytest.approx(4 / 3)
    assert two['seconds'] == pytest.approx(1) and two['name'] == 'b'


def test_clock_charges_what_is_marked(monkeypatch):
    now = iter([5.0, 9.0, 9.0, 10.5, 12.0, 12.25, 13.0])
    monkeypatch.setattr('torch.utils.benchmark.timer', lambda: next(now))
    clock = load('train_step').Clock('cpu', 'wall')
    clock.mark('data')  # before a turn: not counted
    owner = SimpleNamespace(method=lambda value: value + 1)
    clock.charge(owner, 'method', 'backward')
    result, seconds, parts = clock.time(lambda: clock.mark('data') or owner.method(1))
    # From 9 to 13; marks at 9, 10.5, 12 and 12.25.
    assert (result, seconds) == (2, 4.0)
    assert parts['data'] == 1.5 and parts['backward'] == 0.25
    assert parts['other'] == 1.5 and sum(parts.values()) == 3.25


@pytest.fixture
def case():
    """A case of two steps without a runner; the second one waits for the GPU."""

    def run_iter(number, batch):
        if number:
            raise RuntimeError('called a synchronizing CUDA operation\nmore')

    def ignore(*args):
        return None

    step = load('train_step')
    case = step.Case.__new__(step.Case)
    case.clock = step.Clock('cpu', 'wall')
    batch = dict(inputs=['view', 'view', 'view'], data_samples=['one', 'two'])
    case.loop = SimpleNamespace(run_iter=run_iter, dataloader=[batch, batch])
    case.runner = SimpleNamespace(call_hook=ignore, model=SimpleNamespace(train=ignore))
    case.steps = case._run()
    return case


def test_a_step_that_waits_for_the_gpu_is_found(case, monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    assert case.find_wait() == '' and modes == ['error', 'default']
    wait = case.find_wait()
    assert 'called a synchronizing CUDA operation)' in wait and 'test_benchmarks.py' in wait
    assert modes == ['error', 'default'] * 2


def test_images_are_counted_not_views(case):
    assert case.do(1) == 2


# --- the report of a GPU --------------------------------------------------- #


def test_a_step_that_fails_does_not_stop_the_report(tmp_path, monkeypatch, capsys):
    report = load('gpu_report')
    started = 'import subprocess, sys; worker = subprocess.Popen(["sleep", "60"]); '
    wait = 'print(worker.pid, flush=True); worker.wait()'
    write = 'open("{name}.json", "w").write("[1{end}"); import found_there; print(2); print(3)'
    steps = [
        ('bad', 60, 'print(1); raise KeyError("a|b")'),
        ('slow', 3, started + wait),
        ('good', 60, write.format(name='good', end=']')),
        ('broken', 60, write.format(name='broken', end='')),
        ('late', 60, 'import time; time.sleep(60)'),
        ('never', 60, ''),
    ]
    steps = [(name, limit, [sys.executable, '-c', code]) for name, limit, code in steps]
    # A relative path holds in every step.
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'found_there.py').touch()
    (tmp_path / 'scratch').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', 'site')
    monkeypatch.setattr(report, 'LEAST', 0.5)
    monkeypatch.setattr(report, 'LINES', 1)
    now = iter([0.0, *[1.0] * 12, 59.0, 59.0, 59.9, 59.9])
    monkeypatch.setattr(report, 'time', SimpleNamespace(monotonic=lambda: next(now)))
    report.run_all(steps, 60, 'a machine', tmp_path / 'scratch', tmp_path)
    result = json.loads((tmp_path / 'report.json').read_text())
    assert result['machine'] == 'a machine'
    bad, slow, good, broken, late, never = result['steps']
    assert (bad['status'], bad['last_line']) == ('exit status 1', "KeyError: 'a|b'")
    assert slow['status'] == 'stopped after 3 s'
    # Its worker is gone with it, or waits to be collected.
    state = Path(f'/proc/{slow["last_line"]}/stat')
    assert not state.exists() or state.read_text().split()[2] == 'Z'
    assert (good['status'], good['result'], good['output']) == ('done', [1], ['3'])
    assert (broken['status'], broken['result']) == ('done', None)
    # What is left of the minute.
    assert (late['status'], late['seconds']) == ('stopped after 1 s', 0.9)
    assert (never['status'], never['seconds']) == ('not run', 0)
    text = (tmp_path / 'report.md').read_text()
    assert r'| bad | exit status 1 |' in text and r"`KeyError: 'a\|b'` |" in text
    assert '## good\n\n```\n3\n```\n' in text
    assert 'bad: exit status 1' in capsys.readouterr().out


def test_the_report_runs_from_a_checkout_that_is_not_installed(tmp_path):
    """Its requirements alone are on the path, as on a machine without a network."""
    script = tables.REPO / 'tools' / 'benchmarks' / 'gpu_report.py'
    code = 'import runpy, sys; sys.path[:0] = sys.argv[1:3]; del sys.argv[1:3]; '
    code += f'runpy.run_path({str(script)!r}, run_name="__main__")'
    # -S: an editable install would make the package importable.
    command = [sys.executable, '-S', '-c', code, str(script.parent), get_path('purelib')]
    command += '--minutes 0 --device cpu --out new'.split()
    env = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    steps = json.loads((tmp_path / 'new' / 'report.json').read_text())['steps']
    assert {step['status'] for step in steps} == {'not run'}


def test_steps_of_a_gpu(tmp_path, monkeypatch):
    """What needs a GPU to run, looked at without one: every config and option is right."""
    step = load('train_step')
    monkeypatch.chdir(tmp_path)
    steps = {name: command for name, _, command in load('gpu_report').make_steps('cuda', tmp_path)}
    assert list(steps)[:2] == ['tests', 'crd_loss-cifar']
    files = steps['tests']
    for name in ('crd_loss', 'captured_step', 'triton_contrast'):
        assert any(file.endswith(f'test_{name}.py') for file in files)
    assert steps['crd_loss-cifar-fast'].count('--vary') == 3
    for name in ('train_step-crd-graph', 'train_step-kd-bf16', 'train_step-crd-fast'):
        script, *words = steps[name][1:]
        with monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [script, *words])
            patch.setattr(torch.cuda, 'is_available', lambda: True)
            args = step.parse_args()
        assert args.check_sync and args.device == 'cuda' and args.json == f'{name}.json'
        cfg = step.load_config(args.configs[0], args.vary[0], args, str(tmp_path))
        assert cfg.train_dataloader.dataset.type == 'crd_plugin.ResidentDataset'
        assert cfg.train_dataloader.dataset.dataset.type == 'StandIn'
        assert cfg.model.channels_last and cfg.optim_wrapper.dtype == 'bfloat16'
        assert cfg.train_cfg.max_epochs == 1 and cfg.model.teacher_ckpt is None
    loss = cfg.model.distiller.distill_losses.loss_crd
    assert loss.cuda_graph is True and loss.kernel == 'triton'
    assert 'resnet32x4' in (tmp_path / 'kd.py').read_text()


@pytest.mark.slow
def test_report_at_small_sizes(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, 'argv', f'gpu_report --device cpu --out {tmp_path}/new'.split())
    load('gpu_report').main()
    result = json.loads((tmp_path / 'new' / 'report.json').read_text())
    steps = {step['name']: step for step in result['steps']}
    assert [step['name'] for step in steps.values() if step['status'] != 'done'] == []
    assert 'skipped' in steps['tests']['last_line']
    assert steps['crd_loss-imagenet']['result'][0]['name'] == 'mmrazor'
    assert steps['train_step-kd-bf16']['result']['cases'][1]['peak_mib'] > 0
    assert 'accuracy/top1' in steps['epoch-crd']['result'][-1]
    assert steps['data_pipeline']['result']['cases'][-1]['name'] == 'resident'
    assert 'torch' in result['machine'] and 'CUDA' in result['machine']
