"""Drawn rows: uniform, without repetition, as many as needed, of another key."""

import pytest
import torch
from scipy import stats

from crd_plugin.ops import class_keys, draw_negatives, given_negatives, negatives, row_keys
from crd_plugin.ops.negatives import MOST_SETS, TAKEN, random_rows

CPU = torch.device('cpu')


def balanced(num_classes=10, each=500):
    return torch.arange(num_classes * each) % num_classes


def unbalanced():
    """A long tail, labels with gaps: 3, 10, 17 ... in mixed order."""
    sizes = enumerate([1200, 600, 300, 40, 2])
    labels = torch.cat([torch.full((size,), 3 + 7 * label) for label, size in sizes])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def rows_of(drawn, anchor, num_rows):
    """Rows that an anchor is scored against, own key left out."""
    size = drawn.anchors.size(1)
    slots = drawn.slots[anchor].tolist()
    for slot in slots:
        assert drawn.anchors[slot // size, slot % size] == anchor
    if drawn.rows is None:
        rows = torch.arange(num_rows)
    else:
        rows = torch.cat([drawn.rows[slot // size] for slot in slots])
    return rows[drawn.row_key[rows] != drawn.anchor_key[anchor]]


@pytest.mark.parametrize(
    'labels',
    [
        torch.arange(30) % 5,
        torch.arange(30) // 6 * 3 + 2,
        torch.arange(30) % 3 * 10**12,
        (torch.arange(30) % 5).to(torch.uint8),
    ],
    ids=['0 to C', 'gaps', 'large', 'uint8'],
)
def test_class_keys_whatever_the_labels_are(labels):
    keys = class_keys(labels)
    classes = sorted(set(labels.tolist()))
    assert keys.key.tolist() == [classes.index(label) for label in labels.tolist()]
    pools = [int((labels != label).sum()) for label in labels]
    assert keys.smallest_pool == min(pools)
    assert keys.mean_pool == pytest.approx(sum(pools) / 30)


def test_keys_of_many_classes_and_of_rows():
    labels = torch.arange(1 << 16).flip(0) // 2
    assert torch.equal(class_keys(labels).key.long(), labels)
    keys = row_keys(5, CPU)
    assert keys.key.tolist() == [0, 1, 2, 3, 4]
    assert (keys.mean_pool, keys.smallest_pool) == (4, 4)


@pytest.mark.parametrize('labels', [torch.full((9,), 4), torch.zeros(0)])
def test_one_class_has_no_negatives(labels):
    with pytest.raises(ValueError, match="labels holds . class over . rows.*'instance'"):
        class_keys(labels.long())


def test_absent_labels_are_not_a_class():
    with pytest.raises(ValueError, match="labels has -2, but exclude='class' needs.*'instance'"):
        class_keys(torch.tensor([0, -1, 1, -2]))


@pytest.mark.parametrize('batch', [1, 2, 4, 5, 8, 9, 33, 64])
@pytest.mark.parametrize('num_negatives', [3, 200, 1024, 3000, 4499, 4500, 9000])
@pytest.mark.parametrize('labels', [balanced(), unbalanced(), None], ids=['even', 'tail', 'rows'])
def test_distinct_rows_and_about_k_of_them(labels, num_negatives, batch):
    """Each anchor is served by every set it takes, once."""
    keys = row_keys(5000, CPU) if labels is None else class_keys(labels)
    num_rows = keys.key.numel()
    torch.manual_seed(batch)
    drawn = draw_negatives('sampled', torch.randint(num_rows, (batch,)), keys, num_negatives)
    assert drawn.num_negatives == num_negatives and drawn.num_rows == num_rows
    remaining = [rows_of(drawn, anchor, num_rows) for anchor in range(batch)]
    for rows in remaining:
        assert rows.unique().numel() == rows.numel()
    if drawn.rows is None:
        assert drawn.rows_per_set == num_rows
        assert num_negatives * num_rows / keys.mean_pool > 0.7 * num_rows
    else:
        assert drawn.rows.unique().numel() == drawn.rows.numel()
        scored = drawn.rows_per_set * drawn.slots.size(1)
        assert 0 <= scored - num_negatives * num_rows / keys.mean_pool < 1 + TAKEN
    if labels is not None and num_negatives in (1024, 3000) and drawn.rows is not None:
        share = len(remaining[0]) / scored
        pool = float((keys.key != drawn.anchor_key[0]).double().mean())
        assert abs(share - pool) < 5 * (pool * (1 - pool) / scored) ** 0.5 + 1e-9


def test_sets_are_smaller_products():
    """At CIFAR-100's size an anchor is scored against three of eight sets."""
    drawn = draw_negatives('sampled', torch.arange(64), class_keys(balanced(100, 500)), 16384)
    # 16,550 rows, of which 99 in 100 are of another class.
    assert drawn.rows.shape == (MOST_SETS, 5517)
    assert drawn.anchors.shape == (MOST_SETS, 64 * TAKEN // MOST_SETS)
    assert drawn.slots.shape == (64, TAKEN)
    # Two anchors share 3 / 8 of their rows in the mean: none, or those of one, two or three sets.
    sets = [set((slots // drawn.anchors.size(1)).tolist()) for slots in drawn.slots]
    shared = [len(a & b) for a in sets for b in sets]
    assert set(shared) == {0, 1, 2, 3}
    assert sum(shared) / len(shared) / TAKEN == pytest.approx(TAKEN / MOST_SETS)


@pytest.mark.parametrize(
    'labels, num_negatives',
    [(balanced(10, 130), 200), (unbalanced(), 150), (balanced(100, 50), 64), (None, 100)],
)
def test_uniform_over_rows_and_over_pairs_of_rows(labels, num_negatives):
    """One anchor followed through many draws: chi-square over its pool, and pairs."""
    torch.manual_seed(5)
    anchor, rounds = 11, 1500
    keys = row_keys(1300, CPU) if labels is None else class_keys(labels)
    num_rows = keys.key.numel()
    pool = (keys.key != keys.key[anchor]).nonzero().view(-1)
    pairs = [(0, 1), (0, 31), (5, 36), (-1, -2), (40, 72)]
    total, hits, expected_hits = torch.zeros(num_rows), torch.zeros(len(pairs)), 0.0
    # The anchor's place in the batch, hence its sets, differ from draw to draw.
    for number in range(rounds):
        ids = torch.full((16,), 3)
        ids[number % 16] = anchor
        found = rows_of(draw_negatives('sampled', ids, keys, num_negatives), number % 16, num_rows)
        drawn = torch.zeros(num_rows)
        drawn[found] = 1
        total += drawn
        hits += torch.stack([drawn[pool[a]] * drawn[pool[b]] for a, b in pairs])
        expected_hits += len(found) * (len(found) - 1) / (len(pool) * (len(pool) - 1))
    assert total.sum() == total[pool].sum()
    observed = total[pool].double()
    expected = observed.mean()
    statistic = ((observed - expected) ** 2 / expected).sum() / (1 - expected / rounds)
    assert 1e-3 < stats.chi2.sf(float(statistic), len(pool) - 1) < 1 - 1e-3
    z = (hits - expected_hits) / expected_hits**0.5
    assert z.abs().max() < 4.5


@pytest.mark.parametrize('number, num_rows', [(5, 5), (7, 1000), (60, 100), (1, 100000)])
def test_random_rows(number, num_rows):
    generator = torch.Generator().manual_seed(0)
    found = [random_rows(num_rows, number, CPU, generator) for _ in range(20)]
    for rows in found:
        assert rows.dtype == torch.int64 and rows.shape == (number,)
        assert rows.unique().numel() == number and 0 <= rows.min() and rows.max() < num_rows
    assert len({tuple(rows.tolist()) for rows in found}) > 1
    again = random_rows(num_rows, number, CPU, torch.Generator().manual_seed(0))
    assert torch.equal(again, found[0])


def test_few_of_many_rows_are_in_random_order(monkeypatch):
    """The cheap way sorts; too few distinct draws fall back to a permutation."""
    torch.manual_seed(0)
    places = torch.stack([random_rows(10000, 50, CPU).argsort().float() for _ in range(300)])
    assert (places.mean(0) - 24.5).abs().max() < 4
    monkeypatch.setattr(torch, 'unique', lambda draws: draws[:3])
    assert random_rows(10000, 50, CPU).numel() == 50


def test_shared_and_all():
    labels = balanced()
    keys, ids = class_keys(labels), torch.tensor([0, 1, 10])
    shared = draw_negatives('shared', ids, keys, 100)
    assert shared.rows.shape == (1, 100) and shared.rows.unique().numel() == 100
    assert shared.anchor_key.tolist() == [0, 1, 0]
    assert shared.anchors.tolist() == [[0, 1, 2]] and shared.slots.tolist() == [[0], [1], [2]]
    every = draw_negatives('all', ids, keys, 100)
    assert every.rows is None and every.rows_per_set == len(labels)
    assert [len(rows_of(every, i, len(labels))) for i in range(3)] == [4500] * 3
    few = draw_negatives('shared', ids, row_keys(30, CPU), 100)
    assert few.rows is None


def test_given_ids_count_as_often_as_they_are_given():
    contrast_idx = torch.tensor([[4, 1, 1, 2], [5, 0, 3, 0]])
    counted = given_negatives(contrast_idx, 6)
    assert counted.num_negatives == 3 and counted.positive.tolist() == [4, 5]
    assert counted.counts.tolist() == [[0, 2, 1, 0, 0, 0], [2, 0, 0, 1, 0, 0]]
    gathered = given_negatives(contrast_idx, 3 * negatives._ROWS_PER_GIVEN_ID + 1)
    assert torch.equal(gathered.rows, contrast_idx[:, 1:])
    assert gathered.anchors.tolist() == gathered.slots.tolist() == [[0], [1]]
