"""The benchmarks of objectives run, write what they promise, and `plain` computes the loss."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models import CRDLoss
from tests import tables


@pytest.fixture(autouse=True)
def _same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _main(monkeypatch, script, *words):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    monkeypatch.setattr(sys, 'argv', [script, *words])
    tables.load_benchmark(script).main()


def _cases(monkeypatch, tmp_path, script, words):
    target = tmp_path / 'cases.json'
    _main(monkeypatch, script, '--size', 'smoke', *words.split(), '--json', str(target))
    return {case['name']: case for case in json.loads(target.read_text())}


def test_crd_loss(monkeypatch, tmp_path, capsys):
    words = '--rounds 2 --threads 1 --modes sampled all'
    cases = _cases(monkeypatch, tmp_path, 'crd_loss', words)
    out = capsys.readouterr().out
    assert 'B=8 N=1000 K=64 D=16' in out
    assert list(cases) == ['mmrazor', 'plain', 'sampled', 'all']
    for name, case in cases.items():
        seconds = case['seconds']
        assert seconds > 0 and case['peak_mib'] > 0 and case['build_seconds'] > 0
        assert case['reference_seconds'] == cases['mmrazor']['seconds']
        assert case['ratio'] == pytest.approx(case['reference_seconds'] / seconds)
        assert case['ceiling_gflop_per_second'] > 0 and case['ceiling_gbyte_per_second'] > 0
        assert case['gflop_per_second'] == pytest.approx(case['flop'] / seconds / 1e9)
        assert case['gbyte_per_second'] == pytest.approx(case['bytes'] / seconds / 1e9)
        assert {'draw_seconds', 'index_seconds'} <= set(case)
        assert f'\n{name:<7}' in out
    # Two directions, two products each, 2 FLOP per multiplication.
    assert {name: case['flop'] for name, case in cases.items()} == {
        'mmrazor': 2 * 2 * 2 * 8 * 65 * 16,
        'plain': 2 * 2 * 2 * 8 * 1000 * 16,
        'sampled': 2 * 2 * 2 * 8 * 64 * 16,
        'all': 2 * 2 * 2 * 8 * 1000 * 16,
    }


def test_crd_loss_of_another_size_and_dtype(monkeypatch, tmp_path, capsys):
    words = '--rounds 1 --modes shared --samples 600 --negatives 32 --dtypes float32 bfloat16'
    cases = _cases(monkeypatch, tmp_path, 'crd_loss', words)
    assert 'B=8 N=600 K=32 D=16' in capsys.readouterr().out
    assert list(cases) == ['mmrazor', 'plain', 'shared', 'shared bfloat16']
    assert cases['shared']['flop'] == cases['shared bfloat16']['flop'] == 2 * 2 * 2 * 8 * 32 * 16


def test_plain_is_the_objective_on_given_ids():
    """Loss, gradients and rows of two steps; the first one sets Z."""
    torch.manual_seed(0)
    samples, width, negatives = 40, 8, 16
    loss = CRDLoss(width, negatives)
    loss.bank.resize(samples, torch.arange(samples) % 4, seed=0)
    plain = tables.load_benchmark('crd_loss').PlainCRD(samples, negatives, width)
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


def test_cktf(monkeypatch, tmp_path, capsys):
    words = '--rounds 1 --threads 1 --levels 1 4 --clock cpu'
    cases = _cases(monkeypatch, tmp_path, 'cktf', words)
    out = capsys.readouterr().out
    assert 'B=4 N=200 K=32 D=8' in out
    assert list(cases) == ['crd', 'pairing', '1 level', '4 levels', '4 apart']
    for name, case in cases.items():
        assert case['seconds'] > 0 and case['peak_mib'] > 0
        assert case['ratio'] == pytest.approx(case['seconds'] / cases['crd']['seconds'])
        assert f'\n{name:<8}' in out
    # Rows are each level's own, labels and their index are held once.
    held = {name: case['held_mib'] for name, case in cases.items()}
    assert held['1 level'] == pytest.approx(held['crd'])
    assert held['4 apart'] == pytest.approx(4 * held['crd'])
    assert 3 * held['crd'] < held['4 levels'] < 3.9 * held['crd']
    assert held['pairing'] == 0


@pytest.mark.parametrize(
    'words, message',
    [
        ('crd_loss --rounds 0', '--rounds is 0, expected at least 1'),
        ('crd_loss --size huge', "invalid choice: 'huge'"),
        ('crd_loss --width 0', '--width is 0, expected at least 1'),
        ('crd_loss --device tpu', "invalid choice: 'tpu'"),
        (
            'crd_loss --size smoke --classes 1',
            '--classes is 1, expected 2 to the 1000 of --samples',
        ),
        (
            'crd_loss --size smoke --batch-size 1001',
            '--batch-size is 1001, expected at most the 1000 of --samples',
        ),
        (
            'crd_loss --json no/such/folder.json',
            '--json is no/such/folder.json, expected a file in a folder',
        ),
        ('cktf --threads 0', '--threads is 0, expected at least 1'),
        ('cktf --levels 2', 'invalid choice: 2'),
    ],
)
def test_wrong_arguments(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        _main(monkeypatch, *words.split())
    assert message in f'{caught.value.code} {capsys.readouterr().err}'
