"""The fused objectives against plain loops, on every path."""

import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import (
    Negatives,
    all_negatives,
    build_label_index,
    contrast,
    draw_negatives,
    info_nce,
    log_partition,
    matmul,
    nce,
    scores,
    shared_negatives,
    tiles,
)

B, N, K, D, TAU = 6, 200, 32, 16, 0.07


@pytest.fixture
def case():
    """Random embeddings, a bank, labels of unequal classes, ids, log Z."""
    generator = torch.Generator().manual_seed(0)
    anchor = F.normalize(torch.randn(B, D, generator=generator, dtype=torch.float64), dim=1)
    rows = F.normalize(torch.randn(N, D, generator=generator, dtype=torch.float64), dim=1)
    labels = torch.randint(0, 5, (N,), generator=generator)
    ids = torch.randperm(N, generator=generator)[:B]
    return anchor, rows, labels, ids, torch.tensor(6.5, dtype=torch.float64)


def weights_of(negatives, ids):
    """What each form of negatives means: a weight of every (i, j)."""
    weight = torch.zeros(ids.numel(), N, dtype=torch.float64)
    for i in range(ids.numel()):
        if negatives.per_anchor:
            for j in negatives.ids[i].tolist():
                weight[i, j] += 1
            continue
        index = negatives.index
        drawn = range(N) if index is None else index.tolist()
        kept = [j for j in drawn if negatives.row_key[j] != negatives.anchor_key[i]]
        for j in kept:
            weight[i, j] = negatives.num_negatives / len(kept)
    return weight


def naive_nce(anchor, rows, ids, negatives, log_z, eps=1e-7):
    """Equation 18 of the paper with the eps of the public code, as loops."""
    weight = weights_of(negatives, ids)
    noise = negatives.num_negatives / N
    total = 0
    for i in range(len(ids)):
        p = torch.exp(rows @ anchor[i] / TAU) / log_z.exp()
        total = total + torch.log(p[ids[i]] / (p[ids[i]] + noise + eps))
        total = total + (weight[i] * torch.log(noise / (p + noise + eps))).sum()
    return -total / len(ids)


def naive_info_nce(anchor, rows, ids, negatives):
    """Softmax cross-entropy with weighted negatives, as loops."""
    weight = weights_of(negatives, ids)
    total = 0
    for i in range(len(ids)):
        e = torch.exp(rows @ anchor[i] / TAU)
        positive = e[ids[i]]
        total = total - torch.log(positive / (positive + (weight[i] * e).sum()))
    return total / len(ids)


def make_negatives(form, labels, ids):
    """All forms that the objectives accept."""
    index = build_label_index(labels)
    torch.manual_seed(1)
    if form == 'repeated':
        return Negatives(K, torch.randint(0, N, (B, K)))
    if form == 'distinct':
        own = draw_negatives(ids, N, K, index).ids
        return Negatives(K, own, distinct=True)
    if form.startswith('parts'):
        drawn = draw_negatives(ids, N, K, index if form == 'parts' else None)
        assert drawn.parts is not None
        return drawn
    return {
        'shared': lambda: shared_negatives(ids, N, K, index),
        'all': lambda: all_negatives(ids, N, K, index),
        'shared-instance': lambda: shared_negatives(ids, N, K),
        'all-instance': lambda: all_negatives(ids, N, K),
    }[form]()


FORMS = [
    'repeated',
    'distinct',
    'parts',
    'parts-instance',
    'shared',
    'all',
    'shared-instance',
    'all-instance',
]
# Tile sizes that end within, at and after the rows; rows gathered or masked;
# from which size on products are those of oneDNN; whether a tile has all
# directions, as on a GPU.
NEVER = 1 << 62
PATHS = {
    'one tile': (1 << 18, 16, NEVER, False),
    'tiles': (B * 37, 16, NEVER, False),
    'tiles, oneDNN': (B * 37, 16, 0, False),
    'tile a row': (1, 16, 0, False),
    'gathered': (1 << 18, 0, NEVER, False),
    'gathered, tiles': (2 * K * D, 0, NEVER, False),
    'together': (1 << 24, 16, NEVER, True),
    'together, tiles': (B * 37, 16, 0, True),
    'together, tile a row': (1, 16, 0, True),
    'together, gathered': (2 * K * D, 0, NEVER, True),
}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Every way through the bank."""
    tile, dense, onednn, together = PATHS[request.param]
    if together:
        monkeypatch.setattr(tiles, '_together', lambda query: [slice(0, query.size(0))])
    monkeypatch.setattr(tiles, '_TILE_CPU', tile)
    monkeypatch.setattr(tiles, '_DENSE_ROWS_PER_NEGATIVE', dense)
    monkeypatch.setattr(matmul, '_SMALL', onednn)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_equals_loops(case, path, form, objective):
    anchor, rows, labels, ids, log_z = case
    negatives = make_negatives(form, labels, ids)
    slow = anchor.clone().requires_grad_()
    if objective == 'nce':
        expected = naive_nce(slow, rows, ids, negatives, log_z)
    else:
        expected = naive_info_nce(slow, rows, ids, negatives)
    (3 * expected).backward()
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        fast = anchor.to(dtype, copy=True).requires_grad_()
        if objective == 'nce':
            result = nce(fast, rows.to(dtype), ids, negatives, log_z, TAU)
        else:
            result = info_nce(fast, rows.to(dtype), ids, negatives, TAU)
        assert result.loss.dtype == dtype
        (3 * result.loss).backward()
        torch.testing.assert_close(result.loss.double(), expected, rtol=rtol, atol=0)
        torch.testing.assert_close(
            fast.grad.double(), slow.grad, rtol=rtol, atol=rtol * float(slow.grad.abs().max())
        )


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('bank_dtype', [torch.float64, torch.bfloat16])
def test_directions_do_not_touch_each_other(case, path, form, objective, bank_dtype):
    """Several directions at once are each of them alone."""
    anchor, rows, labels, ids, log_z = case
    negatives = make_negatives(form, labels, ids)
    anchors = torch.stack([anchor, anchor.flip(0), anchor.roll(1, 1)])
    anchors.requires_grad_()
    banks = [part.to(bank_dtype) for part in (rows, rows.flip(1), -rows)]
    constants = log_z + torch.arange(3)
    weight = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

    def both(anchor, bank, z):
        partition = log_partition(anchor, bank, ids, negatives, TAU)
        if objective == 'nce':
            return partition, nce(anchor, bank, ids, negatives, z, TAU)
        return partition, info_nce(anchor, bank, ids, negatives, TAU)

    partition, result = both(anchors, banks, constants)
    assert result.positive_loss.shape == (3, B)
    (weight * result.loss).sum().backward()
    for i in range(3):
        leaf = anchors[i].detach().clone().requires_grad_()
        expected, alone = both(leaf, banks[i], constants[i])
        (weight[i] * alone.loss).backward()
        for found, wanted in (
            (partition[i], expected),
            (result.loss[i], alone.loss),
            (result.log_h[i], alone.log_h),
            (anchors.grad[i], leaf.grad),
        ):
            assert found.shape == wanted.shape
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-13)


def test_one_constant_for_all_directions(case, path):
    anchor, rows, labels, ids, log_z = case
    negatives = make_negatives('parts', labels, ids)
    arguments = torch.stack([anchor, -anchor]), (rows, rows), ids, negatives
    one = nce(*arguments, log_z, TAU)
    each = nce(*arguments, log_z.expand(2), TAU)
    assert torch.equal(one.loss, each.loss)


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('num_anchors', [1, 9, 20])
def test_more_anchors_than_parts(case, path, num_anchors, objective):
    """Then places of several rounds, some of which nobody is in."""
    _, rows, labels, _, log_z = case
    generator = torch.Generator().manual_seed(2)
    anchor = F.normalize(
        torch.randn(num_anchors, D, generator=generator, dtype=torch.float64), dim=1
    )
    ids = torch.randint(N, (num_anchors,), generator=generator)
    drawn = draw_negatives(ids, N, K, build_label_index(labels))
    assert drawn.parts is not None
    index = drawn.ids
    exact, fast = (anchor.clone().requires_grad_() for _ in '12')
    if objective == 'nce':
        expected = naive_nce(exact, rows, ids, Negatives(K, index), log_z)
        actual = nce(fast, rows, ids, drawn, log_z, TAU)
    else:
        expected = naive_info_nce(exact, rows, ids, Negatives(K, index))
        actual = info_nce(fast, rows, ids, drawn, TAU)
    expected.backward()
    actual.loss.backward()
    torch.testing.assert_close(actual.loss, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(fast.grad, exact.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('form', FORMS)
def test_log_partition_is_the_mean_of_exp(case, path, form):
    anchor, rows, labels, ids, _ = case
    negatives = make_negatives(form, labels, ids)
    e = torch.exp(anchor @ rows.t() / TAU)
    weighted = (e * weights_of(negatives, ids)).sum()
    expected = (weighted + e[torch.arange(B), ids].sum()) / (B * (1 + negatives.num_negatives))
    actual = log_partition(anchor, rows, ids, negatives, TAU)
    torch.testing.assert_close(actual, expected.log())


def test_log_h_is_the_critic_at_the_positive(case):
    anchor, rows, labels, ids, log_z = case
    negatives = make_negatives('all', labels, ids)
    p = torch.exp((anchor * rows[ids]).sum(1) / TAU) / log_z.exp()
    expected = torch.log(p / (p + K / N + 1e-7)).mean()
    result = nce(anchor, rows, ids, negatives, log_z, TAU)
    torch.testing.assert_close(result.log_h, expected)
    assert not result.log_h.requires_grad


@pytest.mark.parametrize('num_negatives', [K, 20])
@pytest.mark.parametrize('exclude', ['class', 'instance'])
@pytest.mark.parametrize('draw', [draw_negatives, shared_negatives])
def test_draws_converge_to_all(case, draw, exclude, num_negatives):
    """'sampled' and 'shared' are unbiased: mean over draws is 'all'.

    Of 20 negatives most of the bank is not looked at in a step.
    """
    anchor, rows, labels, ids, log_z = case
    index = build_label_index(labels) if exclude == 'class' else None
    reference = anchor.clone().requires_grad_()
    every = all_negatives(ids, N, num_negatives, index)
    expected = nce(reference, rows, ids, every, log_z, TAU).loss
    expected.backward()
    torch.manual_seed(3)
    losses, grads = [], []
    for _ in range(1500):
        leaf = anchor.clone().requires_grad_()
        drawn = draw(ids, N, num_negatives, index)
        loss = nce(leaf, rows, ids, drawn, log_z, TAU).loss
        loss.backward()
        losses.append(loss.detach())
        grads.append(leaf.grad)
    for values, exact in ((torch.stack(losses), expected), (torch.stack(grads), reference.grad)):
        error = values.mean(0) - exact.detach()
        standard_error = values.std(0) / len(values) ** 0.5
        assert standard_error.max() > 0
        assert ((error / (standard_error + 1e-12)).abs() < 4.5).all()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('kind', ['identical', 'opposite', 'zero', 'random'])
def test_extreme_inputs_stay_finite(case, form, objective, kind):
    """Temperature 0.01 in float32: exp(100) is out of range."""
    anchor, rows, labels, ids, _ = case
    anchor, rows = anchor.float(), rows.float()
    if kind in ('identical', 'opposite'):
        anchor = anchor[:1].expand(B, D)
        rows = anchor[:1].expand(N, D) * (1 if kind == 'identical' else -1)
    elif kind == 'zero':
        anchor = torch.zeros_like(anchor)
    negatives = make_negatives(form, labels, ids)
    leaf = anchor.clone().requires_grad_()
    log_z = log_partition(leaf, rows, ids, negatives, 0.01) + math.log(N)
    assert torch.isfinite(log_z)
    if objective == 'nce':
        loss = nce(leaf, rows, ids, negatives, log_z, 0.01).loss
    else:
        loss = info_nce(leaf, rows, ids, negatives, 0.01).loss
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


def test_float16_anchor_is_computed_in_float32(case):
    """Also inside autocast; the gradient comes back in float16."""
    anchor, rows, labels, ids, log_z = case
    negatives = make_negatives('all', labels, ids)
    half = anchor.half().requires_grad_()
    full = half.detach().float().requires_grad_()
    rows = rows.float()
    with torch.autocast('cpu', torch.bfloat16):
        result = nce(half, rows, ids, negatives, log_z, TAU)
    expected = nce(full, rows, ids, negatives, log_z, TAU)
    result.loss.backward()
    expected.loss.backward()
    assert torch.equal(result.loss, expected.loss)
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('form', ['distinct', 'parts', 'shared'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_bank_is_read_in_float32(case, form, dtype, path):
    """A narrow bank gives what its rows give in float32."""
    anchor, rows, labels, ids, log_z = case
    negatives = make_negatives(form, labels, ids)
    narrow = rows.to(dtype)
    result = nce(anchor.float(), narrow, ids, negatives, log_z, TAU)
    expected = nce(anchor.float(), narrow.float(), ids, negatives, log_z, TAU)
    assert torch.equal(result.loss, expected.loss)


@pytest.mark.parametrize('form', ['shared-instance', 'all-instance'])
@pytest.mark.parametrize('key', [torch.float64, torch.int64])
def test_ids_beyond_float32(case, form, key):
    """Of 2**24 rows or more the anchor's own row is still left out."""
    anchor, rows, labels, ids, log_z = case
    anchor, rows = anchor.float(), rows.float()
    near = make_negatives(form, labels, ids)
    far = near._replace(
        row_key=near.row_key.to(key) + 2**24, anchor_key=near.anchor_key.to(key) + 2**24
    )
    found = nce(anchor, rows, ids, far, log_z, TAU)
    assert torch.equal(found.loss, nce(anchor, rows, ids, near, log_z, TAU).loss)


def test_bank_gets_no_gradient(case):
    anchor, rows, labels, ids, log_z = case
    rows.requires_grad_()
    leaf = anchor.clone().requires_grad_()
    negatives = make_negatives('all', labels, ids)
    nce(leaf, rows, ids, negatives, log_z, TAU).loss.backward()
    assert rows.grad is None
    assert leaf.grad.abs().max() > 0


def test_scores(case):
    anchor, rows, _, _, _ = case
    index = torch.randint(0, N, (B, 9))
    expected = (anchor[:, None] * rows[index]).sum(2) / TAU
    torch.testing.assert_close(scores(anchor, rows, index, TAU), expected)


@pytest.mark.parametrize('width', [1, 2, 3, 7, 8, 16, 143, 1000])
@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 5e-7), (torch.float64, 1e-14)])
@pytest.mark.parametrize('largest', [-20.0, -1.0])
def test_log_of_complements(dtype, rtol, largest, width):
    """As exact as a sum of softplus wherever it is used, of any width."""
    torch.manual_seed(width)
    score = torch.empty(7, width, dtype=dtype).uniform_(-40, largest)
    total = contrast._log_of_complements(score.sigmoid())
    expected = F.softplus(score.double(), threshold=50).sum(1)
    torch.testing.assert_close(-total.double(), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize('dtype, rtol', [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_log_of_complements_near_its_limit(dtype, rtol):
    score = torch.full((1, 8), -10.0, dtype=dtype)
    score[0, 5] = 2.9
    total = contrast._log_of_complements(score.sigmoid())
    expected = F.softplus(score.double(), threshold=50).sum(1)
    torch.testing.assert_close(-total.double(), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize('p', [[0.5, 0.96], [0.8] * 4, [0.0, 1.0], [float('nan'), 0.1]])
def test_digits_of_complements_would_be_lost(p):
    assert contrast._log_of_complements(torch.tensor([p])) is None


def test_complements_leave_what_they_are_given():
    p = torch.rand(3, 17) * 0.1
    before = p.clone()
    contrast._log_of_complements(p)
    assert torch.equal(p, before)


@pytest.mark.parametrize('scale', [1.0, 30.0])
def test_both_ways_of_the_negatives_agree(scale):
    """Scores on either side of the limit, against float64 softplus."""
    torch.manual_seed(3)
    rows, query = torch.randn(90, 4), torch.randn(5, 4) * scale
    index = torch.randint(90, (5, 40))
    drawn = negatives_of(index)
    loss, grad = (
        value[0]
        for value in contrast._negative_pass(query[None], (rows,), drawn, torch.full((1, 1), 2.0))
    )
    exact = query.double().requires_grad_()
    score = (exact[:, None] * rows.double()[index]).sum(2) - 2
    expected = F.softplus(score, threshold=50).sum(1)
    expected.sum().backward()
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), exact.grad, rtol=1e-5, atol=1e-5)


def test_nan_passes_on():
    rows, query = torch.randn(9, 4), torch.full((1, 4), float('nan'))
    loss, grad = contrast._negative_pass(
        query[None], (rows,), negatives_of(torch.arange(9)[None]), torch.zeros(1, 1)
    )
    assert loss.isnan().all() and grad.isnan().all()


def negatives_of(index):
    """Given ids, as a draw."""
    return Negatives(index.size(1), index)
