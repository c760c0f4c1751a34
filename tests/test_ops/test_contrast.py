"""The objectives against plain loops, for every form of negatives."""

import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.ops import (
    class_keys,
    contrast,
    critic_loss,
    draw_negatives,
    given_negatives,
    info_nce,
    nce,
    partition_sums,
    row_keys,
)

B, N, K, D, TAU = 6, 200, 32, 16, 0.07
FORMS = [f'{rule} {exclude}' for rule in ('sampled', 'shared', 'all') for exclude in 'ci']
FORMS += ['given, counted', 'given, gathered']
OBJECTIVES = ['nce', 'infonce']


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


LABELS = torch.randint(0, 5, (N,), generator=torch.Generator().manual_seed(0))
IDS = torch.randperm(N, generator=torch.Generator().manual_seed(1))[:B]
# Two directions: their anchors, their banks, their partition constants.
ANCHORS, BANKS = unit(2, B, D), unit(2, N, D, seed=1)
LOG_Z = torch.tensor([6.5, 7.25], dtype=torch.float64)


def make_negatives(form, ids=IDS, num_negatives=K, dtype=torch.float64):
    torch.manual_seed(1)
    if form.startswith('given'):
        # The last anchor has one id many times.
        index = torch.randint(0, N, (len(ids), num_negatives))
        index[-1, :9] = 7
        # A bank that is said to be huge is not counted over but gathered.
        num_rows = N if 'counted' in form else 1000 * N
        drawn = given_negatives(torch.cat([ids[:, None], index], 1), num_rows, dtype)
        assert (drawn.counts is None) == ('gathered' in form)
        return drawn._replace(num_rows=N)
    rule, exclude = form.split()
    keys = class_keys(LABELS) if exclude == 'c' else row_keys(N, ids.device)
    return draw_negatives(rule, ids, keys, num_negatives)


def weights_of(negatives):
    """What a form means: the weight of every row for every anchor, by loops."""
    num_anchors = len(negatives.positive)
    weight = torch.zeros(num_anchors, N, dtype=torch.float64)
    size = negatives.anchors.size(1)
    for i in range(num_anchors):
        for slot in negatives.slots[i].tolist():
            assert negatives.anchors[slot // size, slot % size] == i
            rows = range(N) if negatives.rows is None else negatives.rows[slot // size].tolist()
            for j in rows:
                if negatives.counts is not None:
                    weight[i, j] += negatives.counts[i, j]
                elif negatives.row_key is None or negatives.row_key[j] != negatives.anchor_key[i]:
                    weight[i, j] += 1
    if negatives.row_key is not None:
        weight *= K / weight.sum(1, keepdim=True)
    return weight


def naive_losses(objective, anchor, rows, negatives, log_z, eps=1e-7):
    """Equation 18 with the eps of the public code, or a weighted softmax, anchor by anchor."""
    weight, noise, losses = weights_of(negatives), K / N, []
    for i, positive in enumerate(negatives.positive):
        e = torch.exp(rows @ anchor[i] / TAU)
        if objective == 'infonce':
            losses.append(-torch.log(e[positive] / (e[positive] + (weight[i] * e).sum())))
            continue
        p = e / log_z.exp()
        loss = -torch.log(p[positive] / (p[positive] + noise + eps))
        losses.append(loss - (weight[i] * torch.log(noise / (p + noise + eps))).sum())
    return torch.stack(losses)


def ours(objective, anchor, banks, negatives, log_z=LOG_Z, temperature=TAU):
    if objective == 'infonce':
        return info_nce(anchor, banks, negatives, temperature)
    return nce(anchor, banks, negatives, log_z, temperature)


# Sets per piece and scores per piece: pieces end within, at and after the rows.
PATHS = {
    'cpu': (1, 1 << 18),
    'pieces': (1, B * 37),
    'row by row': (1, 1),
    'all sets': (None, 1 << 18),
    'all sets, pieces': (None, B * 37),
}


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """Every way through the rows, that of a GPU included."""
    sets, limit = PATHS[request.param]
    monkeypatch.setattr(contrast, '_piece_size', lambda slots: (sets or slots.size(1), limit))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('objective', OBJECTIVES)
def test_equals_loops(path, form, objective):
    negatives = make_negatives(form)
    slow = ANCHORS.clone().requires_grad_()
    expected = torch.stack(
        [naive_losses(objective, slow[e], BANKS[e], negatives, LOG_Z[e]).mean() for e in range(2)]
    )
    scale = torch.tensor([3.0, -2.0]).double()
    (scale * expected).sum().backward()
    for dtype, rtol in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        fast = ANCHORS.to(dtype, copy=True).requires_grad_()
        result = ours(objective, fast, list(BANKS.to(dtype)), make_negatives(form, dtype=dtype))
        assert result.loss.dtype == dtype and result.positive_loss.shape == (2, B)
        (scale.to(dtype) * result.loss).sum().backward()
        torch.testing.assert_close(result.loss.double(), expected, rtol=rtol, atol=0)
        atol = rtol * float(slow.grad.abs().max())
        torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=rtol, atol=atol)


@pytest.mark.parametrize('form', FORMS)
def test_partition_sums_are_sums_of_exp(path, form):
    negatives = make_negatives(form)
    e = torch.exp(ANCHORS @ BANKS.mT / TAU)
    total = (e * weights_of(negatives)).sum((1, 2)) + e[:, range(B), IDS].sum(1)
    log_sum, number = partition_sums(ANCHORS, list(BANKS), negatives, TAU)
    torch.testing.assert_close(log_sum, total.log())
    assert number.tolist() == 2 * [B * (1 + K)]


def test_partition_sums_leave_out_anchors_without_a_negative():
    drawn = make_negatives('shared c')
    counted = drawn.anchor_key != drawn.anchor_key[0]
    assert 0 < counted.sum() < B
    drawn = drawn._replace(row_key=drawn.anchor_key[0].expand(N))
    e = torch.exp(ANCHORS @ BANKS.mT / TAU)
    total = e[:, counted][:, :, drawn.rows[0]].sum((1, 2))
    total += e[:, range(B), IDS][:, counted].sum(1)
    log_sum, number = partition_sums(ANCHORS, list(BANKS), drawn, TAU)
    torch.testing.assert_close(log_sum, total.log())
    assert number.tolist() == 2 * [int(counted.sum()) * (1 + K)]


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('num_anchors', [1, 3, 4, 9, 20])
def test_any_number_of_anchors(objective, num_anchors):
    """Groups of unequal size, slots that nobody reads, a single set."""
    ids = torch.randint(N, (num_anchors,), generator=torch.Generator().manual_seed(2))
    negatives = make_negatives('sampled c', ids)
    slow = unit(1, num_anchors, D, seed=3).requires_grad_()
    fast = slow.detach().clone().requires_grad_()
    expected = naive_losses(objective, slow[0], BANKS[0], negatives, LOG_Z[0]).mean()
    expected.backward()
    result = ours(objective, fast, [BANKS[0]], negatives, LOG_Z[:1])
    result.loss.sum().backward()
    torch.testing.assert_close(result.loss, expected[None], rtol=1e-10, atol=0)
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('num_negatives', [K, 20, 190])
@pytest.mark.parametrize('exclude', 'ci')
@pytest.mark.parametrize('rule', ['sampled', 'shared'])
def test_draws_converge_to_all(rule, exclude, num_negatives):
    """Both rules are unbiased: the mean over draws is 'all', gradients included."""
    keys = class_keys(LABELS) if exclude == 'c' else row_keys(N, IDS.device)

    def value_and_grad(rule):
        leaf = ANCHORS[:1].clone().requires_grad_()
        drawn = draw_negatives(rule, IDS, keys, num_negatives)
        loss = nce(leaf, [BANKS[0]], drawn, LOG_Z[:1], TAU).loss.sum()
        loss.backward()
        return torch.cat([loss.detach()[None], leaf.grad.flatten()])

    expected = value_and_grad('all')
    torch.manual_seed(3)
    found = torch.stack([value_and_grad(rule) for _ in range(1000)])
    error = found.mean(0) - expected
    standard_error = found.std(0) / len(found) ** 0.5
    if (rule, exclude, num_negatives) == ('sampled', 'c', 190):
        assert error.abs().max() < 1e-12  # More than any pool has: every row is scored.
    else:
        assert standard_error.max() > 0
        assert ((error / (standard_error + 1e-12)).abs() < 4.5).all()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('kind', ['identical', 'opposite', 'zero', 'random'])
def test_extreme_inputs_stay_finite(form, objective, kind):
    """Temperature 0.01 in float32: exp(100) is out of range."""
    anchor, rows = ANCHORS.float(), BANKS.float()
    if kind in ('identical', 'opposite'):
        anchor = anchor[:, :1].expand(2, B, D)
        rows = anchor[:, :1].expand(2, N, D) * (1 if kind == 'identical' else -1)
    elif kind == 'zero':
        anchor = torch.zeros_like(anchor)
    negatives = make_negatives(form, dtype=torch.float32)
    leaf = anchor.clone().requires_grad_()
    log_sum, number = partition_sums(leaf, list(rows), negatives, 0.01)
    log_z = log_sum - number.log() + math.log(N)
    assert torch.isfinite(log_z).all()
    loss = ours(objective, leaf, list(rows), negatives, log_z, 0.01).loss.sum()
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(leaf.grad).all()


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_an_anchor_whose_draw_holds_its_own_class_alone(objective):
    """Then nothing is pushed away; the positive still pulls."""
    drawn = make_negatives('shared c')
    own = drawn._replace(anchor_key=torch.full_like(drawn.anchor_key, 99))
    own = own._replace(row_key=torch.full_like(drawn.row_key, 99))
    leaf = ANCHORS.clone().requires_grad_()
    result = ours(objective, leaf, list(BANKS), own)
    result.loss.sum().backward()
    expected = result.positive_loss.mean(1)
    if objective == 'nce':
        expected = expected + K * math.log1p(1e-7 * N / K)
    torch.testing.assert_close(result.loss, expected)
    assert torch.isfinite(leaf.grad).all()
    # Under a softmax a positive without negatives has nothing left to learn.
    assert (leaf.grad.abs().max() > 0) == (objective == 'nce')


def test_half_anchors_are_computed_in_float32():
    """Also inside autocast; the gradient comes back in float16."""
    half = ANCHORS.half().requires_grad_()
    full = half.detach().float().requires_grad_()
    arguments = list(BANKS.float()), make_negatives('all c'), LOG_Z, TAU
    with torch.autocast('cpu', torch.bfloat16):
        result = nce(half, *arguments)
    expected = nce(full, *arguments)
    result.loss.sum().backward()
    expected.loss.sum().backward()
    assert torch.equal(result.loss, expected.loss)
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.float(), full.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_half_bank_is_read_in_float32(form, dtype):
    narrow, negatives = BANKS.to(dtype), make_negatives(form, dtype=torch.float32)
    result = nce(ANCHORS.float(), list(narrow), negatives, LOG_Z, TAU)
    expected = nce(ANCHORS.float(), list(narrow.float()), negatives, LOG_Z, TAU)
    assert torch.equal(result.loss, expected.loss)


def test_a_bank_gets_no_gradient_and_nan_passes_on():
    rows = BANKS.clone().requires_grad_()
    leaf = ANCHORS.clone().requires_grad_()
    nce(leaf, list(rows), make_negatives('all c'), LOG_Z, TAU).loss.sum().backward()
    assert rows.grad is None and leaf.grad.abs().max() > 0
    lost = nce(leaf * math.nan, list(BANKS), make_negatives('all c'), LOG_Z, TAU)
    assert lost.loss.isnan().all()


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('exclude', 'ci')
def test_critic_loss_is_the_objective_of_a_bank_of_the_batch(objective, exclude):
    """Values and anchor gradients; the keys' gradient is that of plain autograd."""
    labels = LABELS[:B]
    keys = class_keys(labels) if exclude == 'c' else row_keys(B, labels.device)
    ids = torch.arange(B)
    negatives = draw_negatives('all', ids, keys, B - 1)
    anchor, rows = (side.clone().requires_grad_() for side in (ANCHORS[0], unit(B, D, seed=5)))
    log_mean = torch.tensor(1.3, dtype=torch.float64)
    expected = ours(
        objective, anchor[None], [rows.detach()], negatives, log_mean[None] + math.log(B)
    )
    (anchor_grad,) = torch.autograd.grad(expected.loss.sum(), anchor)
    other = (keys.key[:, None] != keys.key).double()
    weight = other * ((B - 1) / other.sum(1, keepdim=True))
    score = anchor @ rows.t() / TAU
    loss, log_h = critic_loss(score, ids, weight, log_mean if objective == 'nce' else None)
    torch.testing.assert_close(loss.mean(), expected.loss[0])
    torch.testing.assert_close(log_h, -expected.positive_loss[0])
    found, key_grad = torch.autograd.grad(loss.mean(), (anchor, rows))
    torch.testing.assert_close(found, anchor_grad)
    assert key_grad.abs().max() > 1e-3 and not log_h.requires_grad


@pytest.mark.parametrize('objective', OBJECTIVES)
def test_critic_loss_without_negatives_and_at_small_temperatures(objective):
    """An anchor whose key all samples share; exp(1 / 0.005) is beyond float32."""
    score = (ANCHORS[0] @ ANCHORS[0].t() / 0.005).float().requires_grad_()
    mean = torch.tensor(195.0) if objective == 'nce' else None
    for weight in (torch.zeros(B, B), 1 - torch.eye(B)):
        loss, _ = critic_loss(score, torch.arange(B), weight, mean)
        loss.sum().backward()
        assert torch.isfinite(loss).all() and torch.isfinite(score.grad).all()
        if objective == 'infonce' and not weight.any():
            assert loss.abs().max() < 1e-5
