"""Pairing blocks: the choices and features of kaiqi123/CKTF; one shape, cosines, pooling."""

import random

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import pairing
from crd_plugin.ops.pairing import (
    block_cosines,
    pad_channels,
    pair_blocks,
    pool_flat,
    unit_over_batch,
)
from tests import golden
from tests.test_models.test_losses.test_cktf_loss import CASES, PAIRINGS, inputs_of


def blocks_of(name):
    inputs = inputs_of(golden.load(name))
    return inputs['s_blocks'], inputs['t_blocks']


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_pairs_of_the_published_code(name, method):
    case = golden.load(name)
    pairs = pair_blocks(*blocks_of(name), method.lower())
    assert len(pairs) == int(case['n_groups'])
    for i, (student, teacher) in enumerate(pairs):
        golden.assert_value(student, case[f'{method}.pair_s_g{i}'])
        golden.assert_value(teacher, case[f'{method}.pair_t_g{i}'])
        assert student.requires_grad and not teacher.requires_grad


@pytest.mark.parametrize('name', CASES[:3])
def test_cosines_of_the_published_code(name):
    case = golden.load(name)
    for group, (student, teachers) in enumerate(zip(*blocks_of(name))):
        teachers = [unit_over_batch(block) for block in teachers]
        student = pad_channels(unit_over_batch(student[-1]), teachers[0].size(1))
        golden.assert_value(block_cosines(student, teachers), case[f'cosine_g{group}'])


def test_random_takes_each_block():
    s_blocks, t_blocks = blocks_of('cktf_resnet')
    s_blocks, t_blocks = s_blocks[:1], t_blocks[:1]
    each = [pair_blocks(s_blocks, [t_blocks[0][:end]])[0][1] for end in (1, 2, 3)]
    chosen = []
    for _ in range(2):
        random.seed(0)
        feats = [pair_blocks(s_blocks, t_blocks, 'random')[0][1] for _ in range(60)]
        chosen.append([[torch.equal(feat, one) for one in each].index(True) for feat in feats])
    assert min(chosen[0].count(index) for index in range(3)) > 8
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    'method, cosines, index',
    [
        ('largest', [1.0, 0.0, 1.0, 0.0], 2),
        ('smallest', [-0.5, 0.1, 0.2, 0.3], 0),
        ('largest', [-0.5, 0.4, 0.2, 0.3], 1),
        ('smallest', [0.5, 0.5, 0.5, 0.5], 3),
    ],
)
def test_the_later_of_equal_blocks_is_taken(monkeypatch, method, cosines, index):
    monkeypatch.setattr(pairing, 'block_cosines', lambda *args: torch.tensor(cosines))
    maps = list(torch.randn(4, 3, 2, 8, 8))
    ((_, chosen),) = pair_blocks([maps[0]], [maps], method)
    ((_, expected),) = pair_blocks([maps[0]], [maps[: index + 1]])
    assert torch.equal(chosen, expected)


def test_last_map_of_a_stage_suffices_for_last():
    s_blocks, t_blocks = blocks_of('cktf_resnet')
    last = [[stage[-1] for stage in side] for side in (s_blocks, t_blocks)]
    for one, other in zip(pair_blocks(*last), pair_blocks(s_blocks, t_blocks)):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    for method in ('first', 'smallest', 'largest', 'random'):
        with pytest.raises(ValueError, match="blocks='all'"):
            pair_blocks(*last, method)
        # Of the student, the last map always suffices.
        pair_blocks(last[0], t_blocks, method)


@pytest.mark.parametrize(
    's_blocks, t_blocks, message',
    [
        ([(2, 4, 8, 8)], [(2, 4, 8, 8)] * 2, 's_blocks has 1 stages, t_blocks 2'),
        ([(2, 4, 8, 8)], [(2, 4, 4, 4)], r"student's map is \(8, 8\) pixels"),
        ([(2, 4, 8, 8)], [(2, 5, 8, 8)], 'the difference must be even'),
        ([(2, 4)], [(2, 4, 8, 8)], r'expected \(B, C, H, W\)'),
    ],
)
def test_blocks_that_cannot_be_paired(s_blocks, t_blocks, message):
    with pytest.raises(ValueError, match=message):
        pair_blocks(*([torch.zeros(shape) for shape in side] for side in (s_blocks, t_blocks)))


def test_half_precision(monkeypatch):
    cosines = []
    watch = lambda *args: cosines.append(block_cosines(*args)) or cosines[-1]  # noqa: E731
    monkeypatch.setattr(pairing, 'block_cosines', watch)
    large = (torch.rand(8, 2, 8, 8) * 60000).half().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        ((student, teacher),) = pair_blocks([large], [[large.detach()]], 'smallest')
    assert student.dtype == cosines[0].dtype == torch.float32
    assert torch.isfinite(student).all() and torch.equal(student, teacher)


def test_unit_over_batch():
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    expected = torch.empty_like(x)
    for c in range(3):
        for i in range(4):
            for j in range(4):
                column = x[:, c, i, j]
                expected[:, c, i, j] = column / column.square().sum().sqrt()
    unit = unit_over_batch(x)
    torch.testing.assert_close(unit, expected)
    cotangent = torch.randn_like(x)
    (ours,) = torch.autograd.grad(unit, x, cotangent)
    (theirs,) = torch.autograd.grad(F.normalize(x, dim=0), x, cotangent)
    torch.testing.assert_close(ours, theirs)


def test_dead_units_get_no_gradient():
    x = torch.randn(4, 2, 3, 3)
    x[:, 0, 1, 1] = 0
    x.requires_grad_()
    unit = unit_over_batch(x)
    unit.sum().backward()
    assert (unit[:, 0, 1, 1] == 0).all() and (x.grad[:, 0, 1, 1] == 0).all()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


def test_pad_channels():
    x = torch.randn(2, 4, 3, 3)
    padded = pad_channels(x, 8)
    assert padded.shape == (2, 8, 3, 3)
    assert torch.equal(padded[:, 2:6], x)
    assert not padded[:, :2].any() and not padded[:, 6:].any()
    assert torch.equal(pad_channels(x, 2), x[:, 1:3])
    assert pad_channels(x, 4) is x
    with pytest.raises(ValueError, match="has 4 channels, the teacher's 7"):
        pad_channels(x, 7)


def test_pool_flat():
    x = torch.randn(2, 3, 16, 24)
    flat = pool_flat(x, 'avg8')
    assert flat.shape == (2, 3 * 2 * 3)
    assert flat[1, 2 * 6 + 1 * 3 + 2] == pytest.approx(float(x[1, 2, 8:16, 16:24].mean()), rel=1e-5)
    torch.testing.assert_close(pool_flat(x, 'global'), x.mean((2, 3)))
    small = x[:, :, :4, :4]
    torch.testing.assert_close(pool_flat(small, 'avg8'), small.mean((2, 3)))


@pytest.mark.parametrize(
    'pool, stages, width', [('auto', 3, 12), ('auto', 4, 3), ('avg8', 4, 12), ('global', 3, 3)]
)
def test_pooling_follows_the_stages(pool, stages, width):
    maps = [torch.randn(2, 3, 16, 16) for _ in range(stages)]
    assert [x.size(1) for x, _ in pair_blocks(maps, maps, pool=pool)] == [width] * stages
