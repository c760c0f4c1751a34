"""Pairing blocks: one shape, cosines, pooling."""

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import block_cosines, pad_channels, pool_flat, unit_over_batch
from tests import golden


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
    # The published division would multiply it by 1 / 1e-12.
    y = x.detach().clone().requires_grad_()
    F.normalize(y, dim=0).sum().backward()
    assert y.grad[0, 0, 1, 1] == pytest.approx(1e12)


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


@pytest.mark.parametrize('name', ['cktf_resnet', 'cktf_wrn', 'cktf_vgg'])
def test_cosines_of_the_published_code(name):
    case = golden.load(name)

    def blocks(side, group):
        return [value for key, value in case.items() if key.startswith(f'block_{side}_g{group}_')]

    for group in range(int(case['n_groups'])):
        teachers = [unit_over_batch(x) for x in blocks('t', group)]
        student = pad_channels(unit_over_batch(blocks('s', group)[-1]), teachers[0].size(1))
        golden.assert_value(block_cosines(student, teachers), case[f'cosine_g{group}'])


def test_cosine_of_zero_is_zero():
    zero = torch.zeros(2, 3, 4, 4)
    assert block_cosines(zero, [zero, torch.ones_like(zero)]).tolist() == [0, 0]


def test_pool_flat():
    x = torch.randn(2, 3, 16, 24)
    flat = pool_flat(x, 'avg8')
    assert flat.shape == (2, 3 * 2 * 3)
    assert flat[1, 2 * 6 + 1 * 3 + 2] == pytest.approx(float(x[1, 2, 8:16, 16:24].mean()), rel=1e-5)
    torch.testing.assert_close(pool_flat(x, 'global'), x.mean((2, 3)))
    small = x[:, :, :4, :4]
    torch.testing.assert_close(pool_flat(small, 'avg8'), small.mean((2, 3)))
