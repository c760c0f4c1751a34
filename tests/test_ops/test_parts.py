"""Dealing the parts of a draw to the anchors."""

import itertools
from collections import Counter
from unittest import mock

import pytest
import torch

from crd_plugin.ops import parts as parts_module
from crd_plugin.ops.parts import draw_parts, part_sizes

# Parts that each anchor takes.
TAKEN = 3

# N, K, rows of the largest class
BANKS = [
    (50000, 16384, 500),
    (50000, 16384, 1),
    (50000, 16384, 5000),
    (1281167, 16384, 1300),
    (100, 32, 12),
    (20, 7, 1),
    (21, 15, 5),
    (5000, 1200, 2000),
    (9, 4, 4),
    (64, 8, 8),
]


@pytest.mark.parametrize('num_rows, num_negatives, largest', BANKS)
def test_sizes_hold_enough_rows_of_other_classes(num_rows, num_negatives, largest):
    number, length = part_sizes(num_rows, num_negatives, largest)
    assert number * length <= num_rows
    assert TAKEN <= number <= 12
    assert TAKEN * length >= num_negatives + largest
    # And hardly more than that.
    assert TAKEN * length < 1.05 * (num_negatives + largest) + TAKEN


@pytest.mark.parametrize(
    'num_rows, num_negatives, largest',
    [(20, 16, 5), (20, 15, 5), (20, 19, 2), (2, 1, 1), (1000000, 100, 301)],
)
def test_no_parts(num_rows, num_negatives, largest):
    """Of too few rows, and where own rows are most of what is drawn."""
    assert part_sizes(num_rows, num_negatives, largest) is None


def test_sizes_are_in_eights_where_rows_are_many():
    assert part_sizes(50000, 16384, 500) == (8, 5632)
    # Not where that would be more rows than there are.
    assert part_sizes(5001, 4996, 5) == (3, 1667)
    assert part_sizes(5000, 4996, 5) is None


@pytest.mark.parametrize('number', range(3, 13))
@pytest.mark.parametrize('num_anchors', [1, 7, 16, 33, 300])
def test_deal(number, num_anchors):
    """Three different parts for each, all parts about equally often."""
    anchor, place, empty = parts_module._deal(num_anchors, number, torch.device('cpu'))
    assert place.shape == (num_anchors, TAKEN)
    places = anchor.size(1)
    assert anchor.shape[0] == number and anchor.max() < num_anchors
    for who, where in enumerate(place.tolist()):
        assert len({spot // places for spot in where}) == TAKEN
        assert anchor.view(-1)[where].tolist() == [who] * TAKEN
    # Nobody else is anywhere.
    used = place.view(-1).tolist()
    assert sorted(used + empty.tolist()) == list(range(anchor.numel()))
    whole = num_anchors // number
    taken = (place // places).view(-1).bincount(minlength=number)
    assert taken.min() >= TAKEN * whole
    assert taken.max() <= TAKEN * whole + TAKEN


def test_pairs_of_anchors_share_as_many_parts_as_by_chance():
    place = parts_module._deal(64, 8, torch.device('cpu')).place
    parts = [set((where // 24).tolist()) for where in place]
    shared = [len(one & other) for number, one in enumerate(parts) for other in parts[:number]]
    # By chance 3 * 3 / 8 of three; a deal that is even has slightly less.
    assert 1.05 < sum(shared) / len(shared) < 9 / 8
    assert set(shared) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    'num_rows, num_negatives, num_classes',
    [
        (1000, 130, 20),
        (1000, 130, None),
        (300, 32, 5),
        (9000, 4000, 10),
        (40, 31, 10),
        (700, 150, 2),
        (2000, 260, 300),
        (40000, 50, None),
    ],
)
def test_first_k_of_other_classes(num_rows, num_negatives, num_classes):
    """Against a walk along the rows of each anchor's parts."""
    torch.manual_seed(0)
    largest = 1
    row_class = None
    if num_classes:
        row_class = torch.randint(num_classes, (num_rows,))
        largest = int(row_class.bincount().max())
    sizes = part_sizes(num_rows, num_negatives, largest)
    assert sizes is not None
    ids = torch.randint(num_rows, (37,))
    parts = draw_parts(ids, num_rows, num_negatives, sizes, row_class, num_classes)
    key = torch.arange(num_rows) if row_class is None else row_class
    flat = parts.drawn.flatten(0, 1)
    places = parts.anchor.size(1)
    used = torch.zeros(parts.num_places, dtype=torch.bool)
    for i, where in enumerate(parts.place.tolist()):
        left, ids_of_i = num_negatives, []
        for spot in where:
            used[spot] = True
            rows = parts.rows[spot // places]
            expected = []
            for row in rows.tolist():
                wanted = left > 0 and bool(key[row] != key[ids[i]])
                expected.append(wanted)
                left -= wanted
                ids_of_i += [row] * wanted
            assert flat[spot].tolist() == expected
        assert left == 0
        assert parts.ids[i].tolist() == ids_of_i
    assert not flat[~used].any()


@pytest.mark.parametrize('num_negatives', [1, 2, 3])
def test_exactly_uniform(num_negatives):
    """All orders of the rows: every K-subset of every pool equally often."""
    row_class = torch.tensor([0, 0, 1, 1, 2, 3])
    sizes = part_sizes(6, num_negatives, 2)
    ids = torch.tensor([0, 2, 4, 5, 3])
    found = [Counter() for _ in ids]
    drawn = sizes[0] * sizes[1]
    for order in itertools.permutations(range(6), drawn):
        with mock.patch.object(parts_module, 'random_rows', return_value=torch.tensor(order)):
            parts = draw_parts(ids, 6, num_negatives, sizes, row_class, 4)
        for counter, row in zip(found, parts.ids.tolist()):
            counter[tuple(sorted(row))] += 1
    for anchor, counter in zip(ids, found):
        pool = (row_class != row_class[anchor]).nonzero().view(-1).tolist()
        assert set(counter) == set(itertools.combinations(pool, num_negatives))
        assert len(set(counter.values())) == 1


def test_deal_on_another_default_device():
    parts_module._deal.cache_clear()
    with torch.device('meta'):
        deal = parts_module._deal(5, 4, torch.device('cpu'))
    assert all(table.device.type == 'cpu' for table in deal)


def test_no_anchors():
    parts = draw_parts(torch.arange(0), 100, 8, (7, 3))
    assert parts.num_places == 0 and parts.place.shape == (0, TAKEN)


def test_spread_and_collect():
    torch.manual_seed(0)
    parts = draw_parts(torch.arange(5), 100, 8, (7, 3))
    query = torch.randn(3, 5, 2)
    spread = parts.spread(query)
    assert spread.shape == (3, parts.num_places, 2)
    collected = parts.collect(spread)
    assert torch.equal(collected, query[:, :, None].expand(3, 5, TAKEN, 2))
    assert torch.equal(parts.collect(spread[..., 0]), collected[..., 0])


@pytest.mark.parametrize('length', [3, 8, 2032, 2040, 2048, 6000, 6008])
def test_count(length):
    """Bytes that would overflow if all were added into one."""
    torch.manual_seed(length)
    mask = torch.rand(5, length) < 0.9
    mask[0] = True
    mask[1] = False
    assert torch.equal(parts_module._count(mask).long(), mask.long().sum(1))


@pytest.mark.parametrize(
    'num_keys', [2, 255, 256, 257, 1 << 15, (1 << 15) + 1, 1 << 31, (1 << 31) + 1, 1 << 40]
)
def test_keys_are_compared_in_a_type_that_holds_them(num_keys):
    """Keys that equal each other in a narrower type among them."""
    keys = torch.tensor([[0, 1, 256, 1 << 16, 1 << 32, num_keys - 1]])
    keys = keys.clamp(max=num_keys - 1).repeat(2, 1)
    own = torch.stack([keys[0, :3], keys[0, 3:]])
    differ = parts_module._differ(keys, own, num_keys)
    assert differ.dtype == torch.bool
    assert torch.equal(differ, keys[:, None] != own[:, :, None])
    # What was found stays when the next is looked for.
    kept = differ.clone()
    parts_module._differ(keys.flip(1), own, num_keys)
    assert torch.equal(differ, kept)


def test_generator_repeats():

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return draw_parts(torch.arange(5), 100, 8, (7, 3), generator=generator)

    for one, other in zip(draw(1), draw(1)):
        assert torch.equal(one, other)
    assert not torch.equal(draw(1).rows, draw(2).rows)
