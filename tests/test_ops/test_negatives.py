"""Drawn negatives: never of the class, without repeats, uniform."""

import pytest
import torch
from scipy import stats

from crd_plugin.ops import (
    all_negatives,
    build_label_index,
    draw_negatives,
    negatives,
    shared_negatives,
)


def balanced(num_classes=10, each=500):
    """Labels in an order that mixes the classes."""
    return torch.arange(num_classes * each) % num_classes


def unbalanced():
    """A long tail, labels with gaps: 3, 10, 17 ... in mixed order."""
    labels = torch.cat(
        [torch.full((size,), 3 + 7 * label) for label, size in enumerate([1200, 600, 300, 40, 2])]
    )
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


def many_classes():
    """Sixty classes of 60 to 110 rows."""
    return torch.randint(0, 60, (5000,), generator=torch.Generator().manual_seed(0))


CASES = {
    'balanced': (balanced(), 1024, False),
    'balanced, nearly all': (balanced(), 4499, False),
    'balanced, all': (balanced(), 4500, False),
    'small': (balanced(4, 5), 7, False),
    'unbalanced': (unbalanced(), 300, False),
    'unbalanced, some with replacement': (unbalanced(), 1000, True),
    'more than there are': (balanced(4, 5), 50, True),
    'large bank': (balanced(100, 50), 64, False),
    'large bank, unbalanced': (many_classes(), 100, False),
    'large bank, large class': (unbalanced(), 200, False),
}


@pytest.mark.parametrize(
    'labels',
    [
        torch.arange(30) % 5,
        torch.arange(30).div(6, rounding_mode='floor') * 3 + 2,
        torch.arange(30) % 4 - 2,
        torch.arange(30) % 3 * 10**12,
        torch.arange(30, 60),
        (torch.arange(30) % 5).to(torch.int16),
        (torch.arange(30) % 5).to(torch.uint8),
    ],
    ids=['0 to C', 'gaps', 'negative', 'large', 'all', 'int16', 'uint8'],
)
def test_label_index_whatever_the_labels_are(labels):
    """Against the definition."""
    index = build_label_index(labels)
    classes = sorted(set(labels.tolist()))
    rows = range(len(labels))
    assert index.row_class.tolist() == [classes.index(label) for label in labels.tolist()]
    assert index.row_class.dtype == torch.int64
    assert index.order.tolist() == sorted(rows, key=lambda row: (labels[row], row))
    sizes = [labels.tolist().count(label) for label in classes]
    assert index.count.tolist() == sizes
    assert index.start.tolist() == [sum(sizes[:number]) for number in range(len(sizes))]
    assert index.smallest_pool == len(labels) - max(sizes)
    assert index.largest_pool == len(labels) - min(sizes)


def test_label_index_of_more_classes_than_an_int16_has():
    labels = torch.arange(1 << 16).flip(0) // 2 * 2
    index = build_label_index(labels)
    assert index.count.eq(2).all() and index.count.numel() == 1 << 15
    assert torch.equal(labels[index.order], labels.sort().values)


@pytest.mark.parametrize('labels', [torch.full((9,), 4), torch.zeros(0)])
def test_label_index_of_one_class(labels):
    with pytest.raises(ValueError, match='labels holds . class over'):
        build_label_index(labels.long())


@pytest.mark.parametrize('name', CASES)
def test_other_class_and_distinct(name):
    labels, num_negatives, repeats = CASES[name]
    index = build_label_index(labels)
    torch.manual_seed(0)
    for _ in range(20):
        ids = torch.randint(0, len(labels), (33,))
        drawn = draw_negatives(ids, len(labels), num_negatives, index)
        assert drawn.ids.shape == (33, num_negatives)
        assert drawn.num_negatives == num_negatives
        assert (labels[drawn.ids] != labels[ids][:, None]).all()
        assert drawn.distinct is not repeats
        pool = (labels[None] != labels[ids][:, None]).sum(1)
        for row, size in zip(drawn.ids, pool):
            if num_negatives <= size:
                assert row.unique().numel() == num_negatives


@pytest.mark.parametrize(
    'num_rows, num_negatives', [(5000, 1000), (20, 7), (20, 19), (2, 1), (8, 30)]
)
def test_other_instance_and_distinct(num_rows, num_negatives):
    torch.manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, num_rows, (16,))
        drawn = draw_negatives(ids, num_rows, num_negatives).ids
        assert (drawn != ids[:, None]).all()
        assert drawn.min() >= 0 and drawn.max() < num_rows
        if num_negatives < num_rows:
            for row in drawn:
                assert row.unique().numel() == num_negatives


def count_draws(labels, num_negatives, anchor, rounds):
    """How often each row is drawn for one anchor, over many steps."""
    index = None if labels is None else build_label_index(labels)
    num_rows = 1300 if labels is None else len(labels)
    total = torch.zeros(num_rows, dtype=torch.int64)
    # Places of the first anchors of a batch and of later ones differ.
    ids = torch.full((16,), 3)
    ids[0], ids[15] = anchor, anchor
    for number in range(rounds):
        drawn = draw_negatives(ids, num_rows, num_negatives, index).ids
        total += torch.bincount(drawn[15 * (number % 2)], minlength=num_rows)
    return total


@pytest.mark.parametrize(
    'labels, num_negatives',
    [
        (balanced(10, 130), 200),
        (unbalanced(), 150),
        (balanced(4, 5), 7),
        (balanced(4, 5), 50),
        (unbalanced(), 1000),
        (None, 200),
        (balanced(100, 50), 64),
        (many_classes(), 100),
        (None, 100),
    ],
)
def test_uniform_over_the_pool(labels, num_negatives):
    """Chi-square over rows, one anchor followed through many steps."""
    torch.manual_seed(5)
    anchor, rounds = 11, 800
    total = count_draws(labels, num_negatives, anchor, rounds)
    if labels is None:
        pool = torch.arange(total.numel()) != anchor
    else:
        pool = labels != labels[anchor]
    assert total[~pool].sum() == 0
    observed = total[pool].double()
    expected = rounds * num_negatives / observed.numel()
    statistic = ((observed - expected) ** 2 / expected).sum()
    if num_negatives < observed.numel():
        # Without replacement a row's count varies less than a Poisson one.
        statistic = statistic / (1 - num_negatives / observed.numel())
    p = stats.chi2.sf(float(statistic), observed.numel() - 1)
    assert 1e-3 < p < 1 - 1e-3


@pytest.mark.parametrize('labels', [balanced(10, 130), unbalanced(), balanced(40, 50)])
def test_pairs_of_rows_are_uniform(labels):
    """Two given rows are drawn together as often as a K-subset holds both."""
    torch.manual_seed(6)
    index = build_label_index(labels)
    anchor, num_negatives, rounds = 11, 130, 4000
    pool = (labels != labels[anchor]).nonzero().view(-1)
    pairs = [(0, 1), (0, 31), (5, 36), (-1, -2), (40, 72)]
    hits = torch.zeros(len(pairs))
    ids = torch.full((16,), anchor)
    for number in range(rounds):
        drawn = torch.zeros(len(labels), dtype=torch.bool)
        drawn[draw_negatives(ids, len(labels), num_negatives, index).ids[15 * (number % 2)]] = True
        hits += torch.tensor([float(drawn[pool[a]] & drawn[pool[b]]) for a, b in pairs])
    size = len(pool)
    p = num_negatives * (num_negatives - 1) / (size * (size - 1))
    z = (hits - rounds * p) / (rounds * p * (1 - p)) ** 0.5
    assert z.abs().max() < 4


def test_parts_wherever_they_can_be():
    """A few rows of a large bank; ids where a class has more than 3 K rows."""
    labels = many_classes()
    index = build_label_index(labels)
    drawn = draw_negatives(torch.arange(16), 5000, 100, index)
    assert drawn.index is None and drawn.per_anchor
    assert drawn.parts.rows.numel() < 1000
    assert torch.equal(drawn.ids, drawn.parts.ids)
    large = build_label_index(unbalanced())
    drawn = draw_negatives(torch.arange(16), 2142, 200, large)
    assert drawn.parts is None and drawn.per_anchor
    assert torch.equal(drawn.ids, drawn.index)


def test_candidates_of_unequal_classes_in_lots(monkeypatch):
    """Anchor by anchor they are drawn as they are together."""
    labels = unbalanced()
    index = build_label_index(labels)
    monkeypatch.setattr(negatives, '_CANDIDATES', 1)
    torch.manual_seed(0)
    ids = torch.randint(0, len(labels), (33,))
    drawn = draw_negatives(ids, len(labels), 300, index)
    assert drawn.parts is None and drawn.index.shape == (33, 300)
    assert (labels[drawn.index] != labels[ids][:, None]).all()
    assert all(len(set(row.tolist())) == 300 for row in drawn.index)


@pytest.mark.parametrize(
    'num_negatives, share', [(300, 3 / 12), (2048, 3 / 14 * 14 / 12), (3280, 3 / 9), (9000, 1)]
)
def test_how_many_rows_anchors_share(num_negatives, share):
    """Of S parts 3 / S of K in the mean: much as independent draws would.

    Of a bank with many times K rows a quarter, of one with hardly more all.
    """
    torch.manual_seed(7)
    labels = balanced(500, 20)
    index = build_label_index(labels)
    shared = []
    for _ in range(40):
        # All of one class, hence of the same pool.
        drawn = draw_negatives(
            torch.arange(0, 10000, 500).repeat(4)[:64], len(labels), num_negatives, index
        ).ids
        count = torch.bincount(drawn.view(-1), minlength=len(labels)).double()
        # Ordered pairs of anchors that have a row in common.
        shared.append(float((count * (count - 1)).sum()) / (64 * 63))
    mean = sum(shared) / len(shared)
    assert 0.9 * share < mean / num_negatives < 1.1 * share


def test_generator_repeats_and_differs():
    labels = balanced()
    index = build_label_index(labels)
    ids = torch.arange(8)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return draw_negatives(ids, len(labels), 64, index, generator).ids

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_label_index():
    index = build_label_index(torch.tensor([7, 3, 7, 9, 3, 7]))
    assert index.order.tolist() == [1, 4, 0, 2, 5, 3]
    assert index.row_class.tolist() == [1, 0, 1, 2, 0, 1]
    assert index.start.tolist() == [0, 2, 5]
    assert index.count.tolist() == [2, 3, 1]
    assert (index.smallest_pool, index.largest_pool) == (3, 5)


def test_one_class_has_no_negatives():
    with pytest.raises(ValueError, match="1 class over 5 rows.*'instance'"):
        build_label_index(torch.zeros(5, dtype=torch.int64))


def test_one_class_only_except_for_one_sample():
    labels = torch.zeros(40, dtype=torch.int64)
    labels[13] = 1
    index = build_label_index(labels)
    drawn = draw_negatives(torch.tensor([0, 13]), 40, 6, index).ids
    assert drawn[0].tolist() == [13] * 6
    assert (drawn[1] != 13).all() and drawn[1].unique().numel() == 6


def test_shared_and_all():
    labels = balanced()
    index = build_label_index(labels)
    ids = torch.tensor([0, 1, 10])
    shared = shared_negatives(ids, len(labels), 100, index)
    assert shared.index.shape == (100,)
    assert shared.index.unique().numel() == 100
    assert shared.anchor_key.tolist() == [0, 1, 0]
    every = all_negatives(ids, len(labels), 100, index)
    assert every.index is None
    assert every.pool.tolist() == [4500] * 3
    alone = all_negatives(ids, len(labels), 100)
    assert alone.pool.tolist() == [4999] * 3
    assert alone.anchor_key.tolist() == ids.tolist()
    few = shared_negatives(ids, 30, 100)
    assert sorted(few.index.tolist()) == list(range(30))
