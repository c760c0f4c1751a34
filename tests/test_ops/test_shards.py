"""The parts of all shards, summed, are what the whole bank gives."""

import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import (
    Negatives,
    all_negatives,
    build_label_index,
    build_shard,
    draw_shard,
    given_shard,
    info_nce,
    info_nce_of_sums,
    log_partition,
    log_partition_of_sums,
    merge_softmax,
    nce,
    nce_of_sums,
    shard_nce,
    shard_size,
    shard_softmax,
)

B, N, K, D, TAU = 6, 41, 13, 5, 0.1
SIZES = (4, 2)
LOG_Z = torch.tensor(5.5, dtype=torch.float64)
# Two ranks and three, which have unequal parts of 41 rows; and one.
WORLDS = (1, 2, 3)


@pytest.fixture
def case():
    """Anchors as a leaf, a bank, unequal classes far from 0, ids."""
    generator = torch.Generator().manual_seed(0)
    anchor, rows = (
        F.normalize(torch.randn(size, D, generator=generator, dtype=torch.float64), dim=1)
        for size in (B, N)
    )
    labels = torch.randint(0, 4, (N,), generator=generator) ** 2 + 7
    ids = torch.randperm(N, generator=generator)[:B]
    return anchor.requires_grad_(), rows, labels, ids


def shards_of(world, labels=None):
    """One a rank."""
    return [build_shard(N, rank, world, labels) for rank in range(world)]


def negatives_of(shards, ids, rule, labels=None, generator=None):
    """What each shard draws."""
    given = None if labels is None else labels[ids]
    return [draw_shard(shard, ids, SIZES, K, rule, given, generator) for shard in shards]


def nce_over(anchor, rows, parts):
    """The sum over shards, as an all-reduce makes it, for all anchors."""
    sums = sum(
        shard_nce(anchor, rows[part.shard.rank :: part.shard.world], part, LOG_Z, TAU)
        for part in parts
    )
    return nce_of_sums(anchor, sums, parts[0], TAU)


def softmax_over(anchor, rows, parts):
    """Sums and largest, as two all-reduces make them."""
    found = [
        shard_softmax(anchor, rows[part.shard.rank :: part.shard.world], part, TAU)
        for part in parts
    ]
    largest = torch.stack([log_sum for log_sum, _ in found]).amax(0)
    return sum(merge_softmax(log_sum, largest, part) for log_sum, part in found), largest


def assert_same(anchor, ours, expected):
    """Loss, log h and anchor gradient."""
    for name in ('loss', 'log_h'):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=1e-12, atol=0)
    grads = [torch.autograd.grad(result.loss, anchor)[0] for result in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)


def check_all_objectives(anchor, rows, pos_idx, parts, whole):
    """Against the functions that have the bank in one piece."""
    assert_same(
        anchor, nce_over(anchor, rows, parts), nce(anchor, rows, pos_idx, whole, LOG_Z, TAU)
    )
    sums, largest = softmax_over(anchor, rows, parts)
    assert_same(
        anchor,
        info_nce_of_sums(anchor, sums, largest, TAU),
        info_nce(anchor, rows, pos_idx, whole, TAU),
    )
    torch.testing.assert_close(
        log_partition_of_sums(sums, largest, whole.num_negatives),
        log_partition(anchor, rows, pos_idx, whole, TAU),
        rtol=1e-13,
        atol=0,
    )


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('exclude', ['class', 'instance'])
def test_all_rows(case, world, exclude):
    anchor, rows, labels, ids = case
    labels = labels if exclude == 'class' else None
    index = None if labels is None else build_label_index(labels)
    parts = negatives_of(shards_of(world, labels), ids, 'all', labels)
    check_all_objectives(anchor, rows, ids, parts, all_negatives(ids, N, K, index))


@pytest.mark.parametrize('world', WORLDS)
def test_given_rows(case, world):
    """Ids that repeat, the positive among them, and a relaxed positive."""
    anchor, rows, _, ids = case
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(N, (B, 1 + K), generator=generator)
    chosen[0, 3] = chosen[0, 5] = chosen[0, 0]
    parts = [given_shard(shard, chosen, SIZES, anchor.dtype) for shard in shards_of(world)]
    check_all_objectives(anchor, rows, chosen[:, 0], parts, Negatives(K, chosen[:, 1:]))


@pytest.mark.parametrize('world', WORLDS)
def test_only_own_anchors_are_averaged(case, world):
    """A rank's loss is the mean over its part of the batch."""
    anchor, rows, _, ids = case
    parts = negatives_of(shards_of(world), ids, 'all')
    sums = sum(shard_nce(anchor, rows[p.shard.rank :: world], p, LOG_Z, TAU) for p in parts)
    own = anchor.detach()[4:].requires_grad_()
    assert_same(
        own,
        nce_of_sums(own, sums[4:], parts[0], TAU),
        nce(own, rows, ids[4:], all_negatives(ids[4:], N, K), LOG_Z, TAU),
    )


def weights_of(part):
    """Weight of every row of the bank for each anchor, by a loop."""
    shard, local = part.shard, part.local
    weight = torch.zeros(B, N, dtype=torch.float64)
    for i in range(B):
        scale = 1 if part.weight is None else part.weight[i]
        if local.per_anchor:
            places = local.ids[i]
        else:
            places = torch.arange(shard.size)
            if local.index is not None:
                places = local.index
            places = places[local.row_key[places] != local.anchor_key[i]]
        for place in places.tolist():
            weight[i, place * shard.world + shard.rank] += scale
    return weight


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('exclude', ['class', 'instance'])
@pytest.mark.parametrize('rule, rounds', [('sampled', 500), ('shared', 500), ('all', 1)])
def test_every_row_of_the_pool_is_expected_alike(case, world, exclude, rule, rounds):
    """K / pool for each row that may be drawn, 0 for the others."""
    _, _, labels, ids = case
    labels = labels if exclude == 'class' else None
    shards = shards_of(world, labels)
    generator = torch.Generator().manual_seed(2)
    draws = torch.stack(
        [
            sum(map(weights_of, negatives_of(shards, ids, rule, labels, generator)))
            for _ in range(rounds)
        ]
    )
    if labels is None:
        valid = ids[:, None] != torch.arange(N)
    else:
        valid = labels[ids][:, None] != labels
    expected = valid * (K / valid.sum(1, keepdim=True).double())
    assert (draws[:, ~valid] == 0).all()
    if rule != 'shared':
        # The weights of one step sum to K as well.
        torch.testing.assert_close(draws.sum(2), torch.full((rounds, B), K).double())
    gap = (draws.mean(0) - expected).abs()
    # 246 numbers: one of them above 5 standard errors is no chance.
    error = draws.std(0, correction=0) / math.sqrt(rounds)
    assert (gap <= 5 * error + 1e-12).all()


def test_each_rank_draws_its_share():
    ids = torch.arange(B)
    drawn = [part.local.ids.shape for part in negatives_of(shards_of(3), ids, 'sampled')]
    assert drawn == [(B, 5), (B, 4), (B, 4)]
    few = [draw_shard(shard, ids, SIZES, 2, 'sampled') for shard in shards_of(3)]
    assert [part.local.ids.shape for part in few] == [(B, 1)] * 3
    total = sum(part.weight for part in few)
    torch.testing.assert_close(total, torch.full((B,), 2.0).double())


@pytest.mark.parametrize('world', WORLDS)
def test_every_row_is_on_one_rank(world):
    rows = torch.arange(N)
    found = []
    for rank, shard in enumerate(shards_of(world)):
        owned, place = shard.locate(rows)
        assert shard.size == shard_size(N, rank, world) == owned.sum()
        assert torch.equal(rows[rank::world][place[owned]], rows[owned])
        found.append(owned)
    assert (sum(owned.long() for owned in found) == 1).all()


@pytest.mark.parametrize(
    'labels, message',
    [
        (None, 'memory bank of 3 rows cannot be sharded over 2 ranks: each needs'),
        ([0, 1, 0], 'some rank has no row of another class'),
        ([0, 0, 0], 'some rank has no row of another class'),
    ],
)
def test_too_few_rows(labels, message):
    """Said by every rank, so that none waits for another."""
    labels = None if labels is None else torch.tensor(labels)
    for rank in range(2):
        with pytest.raises(ValueError, match=message):
            build_shard(3, rank, 2, labels)


def test_narrow_rows_are_scored_in_float32(case):
    anchor, rows, _, ids = case
    anchor, rows = anchor.detach().float(), rows.bfloat16()
    parts = negatives_of(shards_of(2), ids, 'all')
    sums = sum(shard_nce(anchor, rows[p.shard.rank :: 2], p, LOG_Z, TAU) for p in parts)
    assert sums.dtype == torch.float32
    whole = nce(anchor, rows.float(), ids, all_negatives(ids, N, K), LOG_Z, TAU)
    torch.testing.assert_close(nce_of_sums(anchor, sums, parts[0], TAU).loss, whole.loss)


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('lead', [(), (2,)])
def test_a_rank_without_anchors(lead, objective):
    """It has a share in the others' all the same."""
    anchor = torch.zeros(*lead, 0, D, requires_grad=True)
    whole = torch.arange(N)
    (part,) = negatives_of(shards_of(1), whole[:B], 'all')
    if objective == 'nce':
        result = nce_of_sums(anchor, torch.zeros(*lead, 0, 2 + D), part, TAU)
    else:
        result = info_nce_of_sums(
            anchor, torch.zeros(*lead, 0, 2 + 2 * D), torch.zeros(*lead, 0), TAU
        )
    assert result.loss.shape == lead
    assert result.positive_loss.shape == (*(lead or (1,)), 0)
    result.loss.sum().backward()
    assert anchor.grad.shape == anchor.shape


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('world', WORLDS)
def test_directions_do_not_touch_each_other(case, world, objective):
    anchor, rows, labels, ids = case
    drawn = negatives_of(shards_of(world, labels), ids, 'all', labels)
    anchors = torch.stack([anchor, anchor.flip(0)])
    banks = (rows, rows.flip(1))

    def over(given, bank):
        if objective == 'infonce':
            sums, largest = softmax_over(given, bank, drawn)
            return info_nce_of_sums(given, sums, largest, TAU)
        return nce_over(given, bank, drawn)

    alone = [over(*side) for side in zip(anchors, banks)]
    if objective == 'infonce':
        found = [
            shard_softmax(anchors, [bank[part.shard.rank :: world] for bank in banks], part, TAU)
            for part in drawn
        ]
        largest = torch.stack([log_sum for log_sum, _ in found]).amax(0)
        sums = sum(merge_softmax(log_sum, largest, part) for log_sum, part in found)
        both = info_nce_of_sums(anchors, sums, largest, TAU)
    else:
        sums = sum(
            shard_nce(anchors, [bank[part.shard.rank :: world] for bank in banks], part, LOG_Z, TAU)
            for part in drawn
        )
        both = nce_of_sums(anchors, sums, drawn[0], TAU)
    weight = torch.tensor([2.0, -3.0], dtype=torch.float64)
    grads = [
        torch.autograd.grad(loss, anchor)[0]
        for loss in (
            (weight * both.loss).sum(),
            weight[0] * alone[0].loss + weight[1] * alone[1].loss,
        )
    ]
    torch.testing.assert_close(*grads)
    for i in range(2):
        torch.testing.assert_close(both.loss[i], alone[i].loss)
        torch.testing.assert_close(both.log_h[i], alone[i].log_h)
