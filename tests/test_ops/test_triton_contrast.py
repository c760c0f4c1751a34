"""The Triton kernel against the plain loop in float64: by Triton's interpreter, and on a GPU.

The interpreter has to be chosen before Triton is imported, so without a GPU this file runs itself
in a subprocess.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import class_keys, contrast, draw_negatives, given_negatives, nce

pytest.importorskip('triton')

INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'
TAU = 0.07
on_each_device = pytest.mark.parametrize(
    'device',
    [
        pytest.param('cpu', marks=pytest.mark.skipif(not INTERPRETED, reason='by a subprocess')),
        pytest.param('cuda', marks=pytest.mark.cuda),
    ],
)


@pytest.mark.skipif(INTERPRETED, reason='this is the subprocess')
def test_by_the_interpreter():
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', __file__]
    env = dict(os.environ, TRITON_INTERPRET='1', CUDA_VISIBLE_DEVICES='')
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
    assert ' passed' in result.stdout


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


# Anchors, rows, negatives, width: several sets; several parts; several blocks of anchors, and a
# width that is no power of two; a set of rows per anchor, without keys, and a wide embedding.
SIZES = {
    'sampled': (16, 120, 40, 16),
    'all': (6, 300, 200, 16),
    'shared': (40, 90, 50, 24),
    'given': (3, 40, 40, 300),
}


def case(rule):
    torch.manual_seed(0)
    batch, num_rows, num_negatives, width = SIZES[rule]
    ids = torch.randperm(num_rows)[:batch]
    if rule == 'given':  # gathered, without keys
        drawn = torch.randint(num_rows, (batch, 1 + num_negatives))
        drawn[:, 0] = ids
        negatives = given_negatives(drawn, 1000 * num_rows)._replace(num_rows=num_rows)
        assert negatives.counts is None
    else:
        keys = class_keys(torch.arange(num_rows) % 3)
        negatives = draw_negatives(rule, ids, keys, num_negatives)
    return unit(2, batch, width), list(unit(2, num_rows, width)), negatives


def to(device, *values):
    return [value.to(device) if isinstance(value, torch.Tensor) else value for value in values]


@on_each_device
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('rule', SIZES)
def test_sums_gradients_and_counts(rule, dtype, device):
    from crd_plugin.ops.triton_contrast import scored_pass

    anchors, banks, negatives = case(rule)
    slots = (anchors / TAU)[:, negatives.anchors].float()
    banks = [bank.to(dtype) for bank in banks]
    # Scores on both sides of the shift, and far below it, as negatives are in training.
    for shift in (torch.tensor([-2.0, 3.0]), torch.tensor([16.0, 11.0])):
        expected = contrast._scored_pass(slots.double(), banks, negatives, shift.double())
        moved = negatives._replace(
            **{
                name: value.to(device)
                for name, value in negatives._asdict().items()
                if isinstance(value, torch.Tensor)
            }
        )
        found = scored_pass(*to(device, slots), to(device, *banks), moved, *to(device, shift))
        for ours, plain in zip(found, expected, strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.cpu().double(), plain, rtol=2e-5, atol=1e-6)


@pytest.mark.skipif(not INTERPRETED, reason='by a subprocess')
def test_what_the_kernel_does_not_have_takes_the_plain_loop(monkeypatch):
    from crd_plugin.ops import triton_contrast

    calls = []
    whole = triton_contrast.scored_pass
    monkeypatch.setattr(
        triton_contrast, 'scored_pass', lambda *args: calls.append(1) or whole(*args)
    )
    anchors, banks, drawn = case('sampled')
    counted = given_negatives(torch.randint(120, (16, 41)), 120)
    assert counted.counts is not None
    log_z = torch.zeros(2, dtype=torch.float64)
    for anchor, negatives, expected in (
        (anchors.float(), drawn, 1),
        (anchors, drawn, 0),
        (anchors.float(), counted, 0),
    ):
        calls.clear()
        nce(anchor, banks, negatives, log_z, TAU, 'triton')
        assert len(calls) == expected
