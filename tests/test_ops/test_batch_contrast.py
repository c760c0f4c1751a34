"""A batch against itself: plain loops, and the objectives over a bank."""

import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import (
    all_negatives,
    batch_info_nce,
    batch_log_total,
    batch_nce,
    batch_weights,
    build_label_index,
    info_nce,
    log_partition,
    nce,
)

B, D, TAU = 7, 5, 0.2
KEYS = {
    'position': torch.arange(B),
    'classes': torch.tensor([0, 1, 2, 0, 2, 2, 1]),
    'one sample twice': torch.tensor([5, 6, 7, 5, 8, 9, 10]),
}
POSITIVE = torch.arange(B)
LOG_MEAN = torch.tensor(1.3, dtype=torch.float64)


@pytest.fixture
def sides():
    """Two sides of a batch, as leaves."""
    generator = torch.Generator().manual_seed(0)
    return [
        F.normalize(
            torch.randn(B, D, generator=generator, dtype=torch.float64), dim=1
        ).requires_grad_()
        for _ in range(2)
    ]


def naive_negatives(key, i):
    """Columns and weight of each."""
    kept = [j for j in range(B) if key[j] != key[i]]
    return kept, (B - 1) / len(kept)


def naive_nce(anchor, rows, key, eps=1e-7):
    """Equation 18 of the paper with N = B, K = B - 1, an anchor at a time."""
    noise, z = (B - 1) / B, B * LOG_MEAN.exp()
    losses = []
    for i in range(B):
        p = torch.exp(rows @ anchor[i] / TAU) / z
        kept, weight = naive_negatives(key, i)
        loss = -torch.log(p[i] / (p[i] + noise + eps))
        for j in kept:
            loss = loss - weight * torch.log(noise / (p[j] + noise + eps))
        losses.append(loss)
    return torch.stack(losses)


def naive_info_nce(anchor, rows, key):
    """Softmax over positive and negatives, an anchor at a time."""
    losses = []
    for i in range(B):
        e = torch.exp(rows @ anchor[i] / TAU)
        kept, weight = naive_negatives(key, i)
        losses.append(-torch.log(e[i] / (e[i] + weight * e[kept].sum())))
    return torch.stack(losses)


def ours(objective, anchor, rows, key):
    """Loss of each anchor and its log h."""
    score = anchor @ rows.t() / TAU
    weight = batch_weights(key, key, score.dtype)
    if objective == 'nce':
        return batch_nce(score, POSITIVE, weight, LOG_MEAN)
    return batch_info_nce(score, POSITIVE, weight)


@pytest.mark.parametrize('name', KEYS)
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_value_and_both_gradients_equal_loops(sides, objective, name):
    key = KEYS[name]
    naive = naive_nce if objective == 'nce' else naive_info_nce
    expected = naive(*sides, key)
    expected_grads = torch.autograd.grad(expected.sum(), sides)
    loss, log_h = ours(objective, *sides, key)
    grads = torch.autograd.grad(loss.sum(), sides)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for grad, other in zip(grads, expected_grads):
        torch.testing.assert_close(grad, other, rtol=1e-10, atol=1e-13)
    score = (sides[0] * sides[1]).sum(1) / TAU
    if objective == 'nce':
        # h = e / (e + K mean(e)), whatever N is; eps is 1e-7.
        h = torch.sigmoid(score - LOG_MEAN - math.log(B - 1))
        torch.testing.assert_close(log_h, h.log().detach(), rtol=0, atol=2e-7)
    else:
        torch.testing.assert_close(log_h, -loss)
    assert not log_h.requires_grad


@pytest.mark.parametrize('name', ['position', 'classes'])
def test_equals_a_bank_of_the_batch(sides, name):
    """Loss, anchor gradient and Z of the objectives that read a bank."""
    anchor, rows = sides
    index = None if name == 'position' else build_label_index(KEYS[name])
    negatives = all_negatives(POSITIVE, B, B - 1, index)
    frozen = rows.detach()
    log_z = LOG_MEAN + math.log(B)
    for objective, bank in (
        ('nce', nce(anchor, frozen, POSITIVE, negatives, log_z, TAU)),
        ('infonce', info_nce(anchor, frozen, POSITIVE, negatives, TAU)),
    ):
        loss, log_h = ours(objective, anchor, frozen, KEYS[name])
        torch.testing.assert_close(loss.mean(), bank.loss)
        torch.testing.assert_close(log_h.mean(), bank.log_h)
        torch.testing.assert_close(
            torch.autograd.grad(loss.mean(), anchor)[0], torch.autograd.grad(bank.loss, anchor)[0]
        )
    score = anchor @ frozen.t() / TAU
    weight = batch_weights(KEYS[name], KEYS[name], score.dtype)
    total = batch_log_total(score, POSITIVE, weight)
    assert not total.requires_grad
    torch.testing.assert_close(
        total - 2 * math.log(B), log_partition(anchor, frozen, POSITIVE, negatives, TAU)
    )


def test_weights():
    key = KEYS['classes']
    weight = batch_weights(key[2:4], key, torch.float32)
    # Four others of seven count as six, and so do five.
    torch.testing.assert_close(
        weight, torch.tensor([[1.5, 1.5, 0, 1.5, 0, 0, 1.5], [0, 1.2, 1.2, 0, 1.2, 1.2, 1.2]])
    )
    same = batch_weights(key[:1], torch.zeros(4, dtype=torch.int64), torch.float64)
    assert same.tolist() == [[0] * 4]


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_an_anchor_without_negatives_is_finite(sides, objective):
    loss, _ = ours(objective, *sides, torch.zeros(B, dtype=torch.int64))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    for side in sides:
        assert torch.isfinite(side.grad).all()
    if objective == 'infonce':
        assert loss.abs().max() < 1e-12


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_small_temperatures_do_not_overflow(sides, objective):
    """exp(1 / 0.005) is beyond float32."""
    anchor = sides[0].detach().float()
    score = anchor @ anchor.t() / 0.005
    weight = batch_weights(POSITIVE, POSITIVE, score.dtype)
    log_mean = batch_log_total(score, POSITIVE, weight) - 2 * math.log(B)
    assert 190 < log_mean < 200
    if objective == 'nce':
        loss, _ = batch_nce(score, POSITIVE, weight, log_mean)
    else:
        loss, _ = batch_info_nce(score, POSITIVE, weight)
    assert torch.isfinite(loss).all()
