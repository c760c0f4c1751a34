"""Rows of a new bank and their updates."""

import torch
import torch.nn.functional as F
from scipy import stats

from crd_plugin.ops import bank, initial_rows, last_occurrence, momentum_rows


def drawn(num_rows, embed_dim, generator):
    parts = list(initial_rows(num_rows, embed_dim, generator))
    starts = [start for start, _ in parts]
    assert starts == list(range(0, num_rows, len(parts[0][1])))
    return torch.cat([rows for _, rows in parts])


def test_initial_rows():
    """Uniform in [-1/4, 1/4]: variance 1/48, so the mean squared norm is 1."""
    before = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    student, teacher = drawn(4000, 48, generator), drawn(4000, 48, generator)
    assert student.shape == (4000, 48)
    for rows in (student, teacher):
        assert 0.2499 < rows.abs().max() <= 0.25
        assert abs(float(rows.pow(2).sum(1).mean()) - 1) < 0.01
        scaled = (rows.view(-1).double() + 0.25) * 2
        assert 1e-3 < stats.kstest(scaled.numpy(), 'uniform').pvalue
    assert (student != teacher).float().mean() > 0.99
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_are_the_rows(monkeypatch):
    whole = drawn(4000, 48, torch.Generator().manual_seed(0))
    monkeypatch.setattr(bank, '_ROWS_AT_ONCE', 37)
    assert torch.equal(drawn(4000, 48, torch.Generator().manual_seed(0)), whole)


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


def test_last_occurrence():
    assert last_occurrence(torch.tensor([7, 3, 7])).tolist() == [2, 1, 2]
    assert last_occurrence(torch.tensor([5, 5, 5])).tolist() == [2, 2, 2]
    ids = torch.randint(0, 50, (300,))
    values = ids.tolist()
    expected = [299 - values[::-1].index(v) for v in values]
    assert last_occurrence(ids).tolist() == expected
