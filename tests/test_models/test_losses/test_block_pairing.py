"""BlockPairing: the choices and features of kaiqi123/CKTF, errors."""

import random

import pytest
import torch

from crd_plugin.models.losses import block_pairing
from crd_plugin.models.losses.block_pairing import BlockPairing
from tests import golden
from tests.test_models.test_losses.test_cktf_loss import PAIRINGS, inputs_of


def blocks_of(name):
    inputs = inputs_of(golden.load(name))
    return inputs['s_blocks'], inputs['t_blocks']


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_pairs_of_the_published_code(name, method):
    case = golden.load(name)
    pairs = BlockPairing(method.lower())(*blocks_of(name))
    assert len(pairs) == int(case['n_groups'])
    for i, (student, teacher) in enumerate(pairs):
        golden.assert_value(student, case[f'{method}.pair_s_g{i}'])
        golden.assert_value(teacher, case[f'{method}.pair_t_g{i}'])
        assert student.requires_grad and not teacher.requires_grad


def test_random_takes_each_block():
    s_blocks, t_blocks = blocks_of('cktf_resnet')
    last = BlockPairing('last', 'avg8')
    each = [last(s_blocks[:1], [t_blocks[0][:end]])[0][1] for end in (1, 2, 3)]
    pairing, chosen = BlockPairing('random'), []
    for _ in range(2):
        random.seed(0)
        feats = [pairing(s_blocks, t_blocks)[0][1] for _ in range(60)]
        chosen.append([[torch.equal(feat, one) for one in each].index(True) for feat in feats])
    assert min(chosen[0].count(index) for index in range(3)) > 8
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize(
    'method, cosines, index',
    [
        ('smallest', [0.0, 1.0, 0.0, 1.0], 2),
        ('largest', [1.0, 0.0, 1.0, 0.0], 2),
        ('smallest', [-0.5, 0.1, 0.2, 0.3], 0),
        ('largest', [-0.5, 0.4, 0.2, 0.3], 1),
        ('smallest', [0.5, 0.5, 0.5, 0.5], 3),
    ],
)
def test_the_later_of_equal_blocks_is_taken(monkeypatch, method, cosines, index):
    monkeypatch.setattr(block_pairing, 'block_cosines', lambda *args: torch.tensor(cosines))
    maps = list(torch.randn(4, 3, 2, 8, 8))
    ((_, chosen),) = BlockPairing(method)([maps[0]], [maps])
    ((_, expected),) = BlockPairing()([maps[0]], [maps[: index + 1]])
    assert torch.equal(chosen, expected)


@pytest.mark.parametrize(
    'pool, stages, width',
    [('auto', 3, 12), ('auto', 4, 3), ('avg8', 4, 12), ('global', 3, 3)],
)
def test_pooling_follows_the_stages(pool, stages, width):
    maps = [torch.randn(2, 3, 16, 16) for _ in range(stages)]
    assert [x.size(1) for x, _ in BlockPairing(pool=pool)(maps, maps)] == [width] * stages


def test_last_map_of_a_stage_suffices_for_last():
    s_blocks, t_blocks = blocks_of('cktf_resnet')
    expected = BlockPairing()(s_blocks, t_blocks)
    last = [[stage[-1] for stage in side] for side in (s_blocks, t_blocks)]
    for one, other in zip(BlockPairing()(*last), expected):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    for method in ('first', 'smallest', 'largest', 'random'):
        with pytest.raises(ValueError, match="blocks='all'"):
            BlockPairing(method)(*last)
        # Of the student, the last map always suffices.
        BlockPairing(method)(last[0], t_blocks)


def test_half_precision():
    large = (torch.rand(8, 2, 8, 8) * 60000).half().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        ((student, teacher),) = BlockPairing('smallest')([large], [[large.detach()]])
    assert student.dtype == torch.float32
    assert torch.isfinite(student).all() and torch.equal(student, teacher)


def test_errors():
    maps = [torch.zeros(2, 4, 8, 8)]
    for s_blocks, t_blocks, message in (
        (maps, maps * 2, 's_blocks has 1 stages, t_blocks 2'),
        (maps, [torch.zeros(2, 4, 4, 4)], r"student's map is \(8, 8\) pixels"),
        (maps, [torch.zeros(2, 5, 8, 8)], 'the difference must be even'),
        ([torch.zeros(2, 4)], maps, r'expected \(B, C, H, W\)'),
    ):
        with pytest.raises(ValueError, match=message):
            BlockPairing()(s_blocks, t_blocks)
    with pytest.raises(ValueError, match="method is 'Last', expected one of"):
        BlockPairing('Last')
    assert "method='first'" in repr(BlockPairing('first'))
