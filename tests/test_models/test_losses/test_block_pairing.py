"""BlockPairing: the choices and features of kaiqi123/CKTF, errors."""

import random

import pytest
import torch

from crd_plugin.models.losses import block_pairing
from crd_plugin.models.losses.block_pairing import BlockPairing
from tests import golden
from tests.test_models.test_losses.test_cktf_loss import PAIRINGS, inputs_of


def blocks_of(case):
    inputs = inputs_of(case)
    return inputs['s_blocks'], inputs['t_blocks']


@pytest.mark.parametrize('name, method', PAIRINGS)
def test_pairs_of_the_published_code(name, method):
    case = golden.load(name)
    pairs = BlockPairing(method.lower())(*blocks_of(case))
    assert len(pairs) == int(case['n_groups'])
    for i, (student, teacher) in enumerate(pairs):
        golden.assert_value(student, case[f'{method}.pair_s_g{i}'])
        golden.assert_value(teacher, case[f'{method}.pair_t_g{i}'])
        assert student.requires_grad and not teacher.requires_grad


def test_random_takes_each_block():
    s_blocks, t_blocks = blocks_of(golden.load('cktf_resnet'))
    last = BlockPairing('last', 'avg8')
    each = [last(s_blocks[:1], [t_blocks[0][:end]])[0][1] for end in (1, 2, 3)]
    pairing = BlockPairing('random')
    random.seed(0)
    counts = [0, 0, 0]
    for _ in range(60):
        (_, teacher), *_ = pairing(s_blocks, t_blocks)
        counts[[torch.equal(teacher, one) for one in each].index(True)] += 1
    assert min(counts) > 8
    random.seed(0)
    first = pairing(s_blocks, t_blocks)[0][1]
    random.seed(0)
    assert torch.equal(first, pairing(s_blocks, t_blocks)[0][1])


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
def test_of_equals_the_later_block(monkeypatch, method, cosines, index):
    monkeypatch.setattr(block_pairing, 'block_cosines', lambda *args: torch.tensor(cosines))
    maps = list(torch.randn(4, 3, 2, 8, 8))
    ((_, chosen),) = BlockPairing(method)([maps[0]], [maps])
    ((_, expected),) = BlockPairing()([maps[0]], [maps[: index + 1]])
    assert torch.equal(chosen, expected)


def test_pooling_follows_the_stages():
    maps = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    widths = {
        n: [student.size(1) for student, _ in BlockPairing()(maps[:n], maps[:n])] for n in (3, 4)
    }
    assert widths == {3: [12] * 3, 4: [3] * 4}
    assert [x.size(1) for x, _ in BlockPairing(pool='avg8')(maps, maps)] == [12] * 4
    pairing = BlockPairing(pool='global')
    assert [x.size(1) for x, _ in pairing(maps[:3], maps[:3])] == [3] * 3


def test_one_map_a_stage_suffices_for_last():
    s_blocks, t_blocks = blocks_of(golden.load('cktf_resnet'))
    expected = BlockPairing()(s_blocks, t_blocks)
    last = [[stage[-1] for stage in side] for side in (s_blocks, t_blocks)]
    for one, other in zip(BlockPairing()(*last), expected):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    for method in ('first', 'smallest', 'largest', 'random'):
        with pytest.raises(ValueError, match="blocks='all'"):
            BlockPairing(method)(*last)
        # The student's last map is all that is needed of it.
        BlockPairing(method)(last[0], t_blocks)


def test_half_precision():
    large = (torch.rand(8, 2, 8, 8) * 60000).half().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        ((student, teacher),) = BlockPairing('smallest')([large], [[large.detach()]])
    assert student.dtype == torch.float32
    assert torch.isfinite(student).all() and torch.equal(student, teacher)


def test_errors():
    maps = [torch.zeros(2, 4, 8, 8)]
    with pytest.raises(ValueError, match='s_blocks has 1 stages, t_blocks 2'):
        BlockPairing()(maps, maps * 2)
    with pytest.raises(ValueError, match=r"student's map is \(8, 8\) pixels"):
        BlockPairing()(maps, [torch.zeros(2, 4, 4, 4)])
    with pytest.raises(ValueError, match='the difference must be even'):
        BlockPairing()(maps, [torch.zeros(2, 5, 8, 8)])
    with pytest.raises(ValueError, match=r'expected \(B, C, H, W\)'):
        BlockPairing()([torch.zeros(2, 4)], maps)
    with pytest.raises(ValueError, match="method is 'Last', expected one of"):
        BlockPairing('Last')
    assert "method='first'" in repr(BlockPairing('first'))
