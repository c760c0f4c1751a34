"""Updates of bank rows."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from crd_plugin.ops import bank as bank_ops
from crd_plugin.ops import (
    initial_pieces,
    initial_rows,
    last_occurrence,
    momentum_rows,
    pack_update,
    unpack_update,
)


def test_initial_rows():
    rows = initial_rows(4000, 48, torch.Generator().manual_seed(0))
    assert rows.shape == (4000, 48)
    # Uniform in [-1/4, 1/4]: variance 1/48, so the mean squared norm is 1.
    assert 0.2499 < rows.abs().max() <= 0.25
    assert abs(float(rows.pow(2).sum(1).mean()) - 1) < 0.01
    again = initial_rows(4000, 48, torch.Generator().manual_seed(0))
    assert torch.equal(rows, again)


@pytest.fixture
def small_pieces(monkeypatch):
    """Draw in pieces that are no whole number of rows."""
    monkeypatch.setattr(bank_ops, '_PIECE', 1000)


def test_large_bank_does_not_depend_on_threads(small_pieces):
    threads, drawn = torch.get_num_threads(), []
    before = torch.get_rng_state()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            drawn.append(initial_rows(4000, 48, torch.Generator().manual_seed(0)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    other = initial_rows(4000, 48, torch.Generator().manual_seed(1))
    assert (other != drawn[0]).float().mean() > 0.99


@pytest.mark.parametrize('num_rows', [15, 4000])
def test_pieces_are_the_rows(small_pieces, num_rows):
    rows = initial_rows(num_rows, 48, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    begin = 0
    for part, piece in initial_pieces(num_rows, 48, generator):
        assert part.start == begin and part.stop - begin == len(piece)
        assert torch.equal(rows[part], piece)
        begin = part.stop
    assert begin == num_rows


def test_large_bank_is_uniform_and_does_not_repeat(small_pieces):
    generator = torch.Generator().manual_seed(0)
    student = initial_rows(4000, 48, generator)
    teacher = initial_rows(4000, 48, generator)
    assert student.shape == (4000, 48)
    for rows in (student, teacher):
        scaled = (rows.view(-1).double() + 0.25) * 2
        assert 1e-3 < stats.kstest(scaled.numpy(), 'uniform').pvalue
    # Neither piece nor side has the numbers of another: of 2 * 192,000 draws
    # out of 2**24 only chance repeats some.
    distinct = torch.cat([student, teacher]).unique().numel()
    assert distinct > 0.98 * 2 * student.numel()


def test_momentum_rows():
    old = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    new = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # 0.5 (3, 4) + 0.5 (0, 1) = (1.5, 2.5); 0.5 (1, 1).
    expected = F.normalize(torch.tensor([[1.5, 2.5], [1.0, 1.0]]), dim=1)
    torch.testing.assert_close(momentum_rows(old, new, 0.5), expected)
    # The momentum weighs the OLD row.
    kept = momentum_rows(old, new, 0.999)
    assert F.cosine_similarity(kept, old).min() > 0.999


def test_opposite_embedding_keeps_the_row():
    old = torch.tensor([[0.6, 0.8]])
    assert torch.equal(momentum_rows(old, -old, 0.5), old)


def test_narrow_rows_keep_their_dtype():
    old = F.normalize(torch.randn(5, 8), dim=1)
    new = F.normalize(torch.randn(5, 8), dim=1)
    half = momentum_rows(old.half(), new, 0.5)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), momentum_rows(old, new, 0.5), rtol=2e-3, atol=2e-3)


def test_last_occurrence():
    assert last_occurrence(torch.tensor([7, 3, 7])).tolist() == [2, 1, 2]
    assert last_occurrence(torch.tensor([5, 5, 5])).tolist() == [2, 2, 2]
    ids = torch.randint(0, 50, (300,))
    values = ids.tolist()
    expected = [299 - values[::-1].index(v) for v in values]
    assert last_occurrence(ids).tolist() == expected


@pytest.mark.parametrize('length', [3, 5])
def test_pack_and_unpack(length):
    ids = torch.tensor([2**40 + 1, 0, 2**62 + 12345])
    student, teacher = torch.randn(3, 4), torch.randn(3, 6).half()
    packed = pack_update(ids, [student, teacher], length)
    assert packed.shape == (length, 2 + 4 + 6)
    back, (s, t) = unpack_update(packed, [4, 6])
    assert back[:3].tolist() == ids.tolist()
    assert torch.equal(s[:3], student) and torch.equal(t[:3], teacher.float())
    # What is filled up repeats the last entry.
    assert (back[3:] == ids[-1]).all()
    assert torch.equal(s[3:], student[-1:].expand(length - 3, -1))
