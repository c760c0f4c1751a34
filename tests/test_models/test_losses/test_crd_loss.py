"""CRDLoss against the published numbers, and its contract."""

import copy
import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models import CRDLoss, EmbeddingConnector
from tests import golden


def build(case, dtype=torch.float32, **kwargs):
    """A loss whose bank holds a case's initial rows."""
    loss = CRDLoss(
        int(case['D']),
        int(case['K']),
        temperature=float(case.get('T_eff', case['T'])),
        momentum=float(case.get('momentum_eff', case['momentum'])),
        num_samples=int(case['n_data']),
        **kwargs,
    ).to(dtype)
    loss.bank.student.copy_(case['memory_v1_init'])
    loss.bank.teacher.copy_(case['memory_v2_init'])
    return loss


@pytest.fixture
def loss():
    torch.manual_seed(0)
    loss = CRDLoss(6, 8)
    loss.bank.resize(40, torch.arange(40) % 4, seed=0)
    return loss


def batch(ids, width=6):
    pair = [F.normalize(torch.randn(len(ids), width), dim=1).requires_grad_() for _ in range(2)]
    return (*pair, torch.as_tensor(ids))


@pytest.mark.parametrize(
    'name', ['crd_small', 'crd_medium', 'crd_wide', 'crd_k_gt_n', 'crd_small_f64']
)
def test_two_published_steps(name):
    """HobbitLong/RepDistiller crd/, two calls with an update between."""
    case = golden.load(name)
    loss = build(case, case['memory_v1_init'].dtype)
    for call in ('call1', 'call2'):
        feats = [case[f'{call}_f_{side}'].clone().requires_grad_() for side in 'st']
        value = loss(*feats, case[f'{call}_idx'], contrast_idx=case[f'{call}_contrast_idx'])
        value.backward()
        loss.bank.commit()
        golden.assert_value(value, case[f'{call}_loss'])
        for feat, side in zip(feats, 'st'):
            golden.assert_grad(feat.grad, case[f'{call}_grad_f_{side}'])
        for name, v in (('student', 'v1'), ('teacher', 'v2')):
            golden.assert_value(getattr(loss.bank, name), case[f'{call}_memory_{v}_after'])
            golden.assert_value(getattr(loss.bank, f'log_z_{name}').exp(), case[f'{call}_Z_{v}'])


@pytest.mark.parametrize('name', ['crd_infonce_small', 'crd_infonce_medium'])
def test_info_nce_step(name):
    case = golden.load(name)
    loss = build(case, objective='infonce')
    feats = [case[f'f_{side}'].clone().requires_grad_() for side in 'st']
    value = loss(*feats, case['idx'], contrast_idx=case['contrast_idx'])
    value.backward()
    loss.bank.commit()
    golden.assert_value(value, case['loss'])
    for feat, side in zip(feats, 'st'):
        golden.assert_grad(feat.grad, case[f'grad_f_{side}'])
    golden.assert_value(loss.bank.student, case['memory_v1_after'])
    golden.assert_value(loss.bank.teacher, case['memory_v2_after'])
    assert not loss.bank.has_z


def test_with_the_heads_in_front():
    """crd_full: raw features, both heads trained."""
    case = golden.load('crd_full')
    loss = build(case)
    heads = {}
    for side in 'st':
        weight = case[f'embed_{side}_weight']
        heads[side] = EmbeddingConnector(weight.size(1), weight.size(0))
        with torch.no_grad():
            heads[side].linear.weight.copy_(weight)
            heads[side].linear.bias.copy_(case[f'embed_{side}_bias'])
    student = case['f_s'].clone().requires_grad_()
    embeddings = heads['s'](student), heads['t'](case['f_t'])
    for embedding, side in zip(embeddings, 'st'):
        golden.assert_value(embedding, case[f'emb_{side}'])
    value = loss(*embeddings, case['idx'], contrast_idx=case['contrast_idx'])
    value.backward()
    loss.bank.commit()
    golden.assert_value(value, case['loss'])
    golden.assert_grad(student.grad, case['grad_f_s'])
    for side in 'st':
        linear = heads[side].linear
        golden.assert_grad(linear.weight.grad, case[f'grad_embed_{side}_weight'])
        golden.assert_grad(linear.bias.grad, case[f'grad_embed_{side}_bias'])
    golden.assert_value(loss.bank.student, case['memory_v1_after'])


@pytest.mark.parametrize('weight', [1.0, 0.8, 0.0])
def test_loss_weight_counts(loss, weight):
    feats = batch([1, 2, 3])
    loss.negatives = 'all'
    plain = loss(*feats).detach()
    loss.bank.discard()
    loss.loss_weight = weight
    value = loss(*feats)
    value.backward()
    torch.testing.assert_close(value, weight * plain)
    assert (feats[0].grad.abs().sum() > 0) == (weight != 0)


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
@pytest.mark.parametrize('negatives', ['sampled', 'shared', 'all'])
@pytest.mark.parametrize('exclude', ['class', 'instance'])
def test_every_mode_trains(objective, negatives, exclude):
    """Free embeddings learn to agree; the bound on information rises."""
    torch.manual_seed(0)
    loss = CRDLoss(6, 8, 0.2, objective=objective, negatives=negatives, exclude=exclude)
    loss.bank.resize(12, torch.arange(12) % 3, seed=0)
    raw = [torch.randn(12, 6, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.Adam(raw, 0.1)
    history = []
    for _ in range(60):
        feats = [F.normalize(side, dim=1) for side in raw]
        value = loss(*feats, torch.arange(12))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        loss.bank.commit()
        history.append((value.item(), loss.mi_bound.item()))
    assert history[-1][0] < 0.75 * history[0][0]
    assert history[-1][1] > history[0][1]
    assert history[-1][1] <= math.log(8)


@pytest.mark.parametrize('negatives', ['sampled', 'shared'])
def test_draws_of_info_nce_are_below_all_rows(negatives):
    """A mean of logarithms is below the logarithm of the mean; NCE's terms are summed."""
    args = batch(range(24))
    settings = dict(num_negatives=20, objective='infonce', exclude='instance', num_samples=100)
    drawn = CRDLoss(6, negatives=negatives, **settings).eval()
    every = CRDLoss(6, negatives='all', **settings).eval()
    every.load_state_dict(drawn.state_dict())
    losses = torch.stack([drawn(*args) for _ in range(100)])
    assert losses.mean() < every(*args) - 4 * losses.std() / 10


def test_bound_is_log_k_plus_log_h():
    case = golden.load('crd_medium')
    loss = build(case)
    loss(
        case['call1_f_s'],
        case['call1_f_t'],
        case['call1_idx'],
        contrast_idx=case['call1_contrast_idx'],
    )
    noise = int(case['K']) / int(case['n_data']) + 1e-7
    log_h = [
        torch.log(p / (p + noise)).mean()
        for p in (case['call1_out_s'][:, 0], case['call1_out_t'][:, 0])
    ]
    golden.assert_value(loss.mi_bound, math.log(int(case['K'])) + sum(log_h) / 2)


def test_forward_leaves_the_bank_alone(loss):
    before = {k: v.clone() for k, v in loss.state_dict().items()}
    loss(*batch([4, 9]))
    assert loss.bank.pending.sample_idx.tolist() == [4, 9]
    for key, value in loss.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    loss.bank.discard()
    loss.eval()
    loss(*batch([4, 9]))
    assert loss.bank.pending is None


def test_gradient_reaches_the_embeddings_alone(loss):
    s, t, ids = batch([4, 9])
    loss(s, t, ids).backward()
    assert s.grad.abs().sum() > 0 and t.grad.abs().sum() > 0
    assert list(loss.parameters()) == []
    assert not any(b.requires_grad for b in loss.buffers())


def test_relaxed_positive(loss):
    """A positive that is another sample: scored there, written here."""
    s, t, ids = batch([4])
    loss.num_negatives = 3
    contrast_idx = torch.tensor([[8, 1, 2, 3]])
    value = loss(s, t, ids, contrast_idx=contrast_idx)
    loss.bank.discard()
    moved = loss(s, t, torch.tensor([8]), contrast_idx=contrast_idx)
    torch.testing.assert_close(value, moved)
    loss.bank.discard()
    loss(s, t, ids, contrast_idx=contrast_idx)
    assert loss.bank.pending.sample_idx.tolist() == [4]


def test_positives_of_another_sample_are_refused(loss):
    *feats, ids = batch([4, 9])
    contrast_idx = torch.arange(18).view(2, 9)
    contrast_idx[:, 0] = torch.tensor([8, 10])  # of the class of 4, but not of 9
    message = 'contrast_idx: the positive of sample 9 is 10, expected the sample itself or one of'
    with pytest.raises(ValueError, match=message):
        loss(*feats, ids, contrast_idx=contrast_idx)
    # Without labels none but the sample.
    for labels in (None, torch.full((40,), -1)):
        loss.bank.resize(40, labels)
        with pytest.raises(ValueError, match='the positive of sample 4 is 8'):
            loss.draw(ids, contrast_idx)


def test_samples_without_a_class():
    labels = torch.arange(40) % 4 - 1
    losses = [CRDLoss(6, 8, exclude=exclude) for exclude in ('class', 'instance')]
    for loss in losses:
        loss.bank.resize(40, labels)
    with pytest.raises(ValueError, match="labels has -1, but exclude='class' needs classes from 0"):
        losses[0](*batch([4, 9]))
    assert losses[1](*batch([4, 9])) > 0


def test_a_batch_of_one_and_more_negatives_than_rows():
    loss = CRDLoss(6, 1000)
    loss.bank.resize(5, torch.tensor([0, 1, 1, 1, 1]))
    s, t, ids = batch([0])
    value = loss(s, t, ids)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(s.grad).all()


def test_a_draw_without_negatives_leaves_z_unset(loss):
    *feats, ids = batch([4, 8, 12])
    drawn = loss.draw(ids)
    alone = drawn._replace(row_key=torch.zeros_like(drawn.row_key))
    value = loss(*feats, ids, negatives=alone)
    value.backward()
    assert value == 0 and feats[0].grad.abs().sum() == 0 and loss.mi_bound.abs() < 1e-6
    loss.bank.commit()
    assert not loss.bank.has_z and loss.bank.log_z.isnan().all()
    assert loss(*feats, ids) > 0
    loss.bank.commit()
    assert loss.bank.has_z and loss.bank.log_z.isfinite().all()
    assert loss(*feats, ids, negatives=alone) > 0  # Positives pull.


def test_z_is_the_mean_over_the_anchors_of_all_ranks(loss, monkeypatch):
    *feats, ids = batch([4, 9])
    drawn = loss.draw(ids)
    # Logarithms of sums, and numbers of terms: a rank with two anchors, one without negatives.
    others = torch.tensor([[[3.0, 4.0], [18.0, 18.0]], [[-math.inf] * 2, [0.0] * 2]]).double()
    ranks = []
    monkeypatch.setattr(
        'crd_plugin.models.losses.crd_loss.all_gather',
        lambda own: ranks.extend([own, *others]) or ranks,
    )
    loss(*feats, ids, negatives=drawn)
    mean = sum(log_sum.exp() for log_sum, _ in ranks) / sum(number for _, number in ranks)
    torch.testing.assert_close(loss.bank.pending.log_z, (40 * mean).log())


@pytest.mark.cuda
@pytest.mark.parametrize('mode', ['sampled', 'all'])
def test_the_same_on_a_gpu(loss, mode):
    """Loss, gradients and rows of two steps, with the same negatives."""
    loss.negatives = mode
    losses = dict(cpu=loss, cuda=copy.deepcopy(loss).cuda())
    for ids in ([4, 9, 11], [11, 30, 2]):
        *feats, idx = batch(ids)
        drawn = torch.cat([idx[:, None], torch.randint(40, (3, 8))], 1)
        steps = []
        for device, loss in losses.items():
            s, t = (feat.detach().to(device).requires_grad_() for feat in feats)
            given = drawn.to(device) if mode == 'sampled' else None
            value = loss(s, t, idx.to(device), contrast_idx=given)
            value.backward()
            loss.bank.commit()
            steps.append([value.detach(), s.grad, t.grad, loss.bank.student, loss.bank.teacher])
        for expected, found in zip(*steps, strict=True):
            torch.testing.assert_close(found.cpu(), expected)


class WithBank(CRDLoss):
    """A class of one's own."""


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(objective='mse'), r"objective is 'mse', expected one of \('nce'"),
        (dict(negatives='none'), "negatives is 'none', expected one of"),
        (dict(exclude='self'), "exclude is 'self', expected one of"),
        (dict(negatives='batch'), 'InBatchCRDLoss, which WithBank is not; give it .* by keyword'),
        (dict(bank_dtype='int8'), "bank_dtype is 'int8', expected one"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message):
        WithBank(**kwargs)
    if 'negatives' in kwargs:
        with pytest.raises(ValueError, match=message.replace('WithBank', 'CRDLoss')):
            CRDLoss(8, None, 0.07, None, 'nce', kwargs['negatives'])


def test_second_step_without_a_hook(loss):
    loss(*batch([0]))
    with pytest.raises(RuntimeError, match='never committed.*MemoryBankHook'):
        loss(*batch([1]))


def nan_row(feats):
    feats = feats.detach().clone()
    feats[1, 2] = float('nan')
    return feats


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda s, t, i: (s, t[:, :5], i), r't_feats has shape \(2, 5\), exp.*EmbeddingConnector'),
        (lambda s, t, i: (s[..., None], t, i), r's_feats has shape \(2, 6, 1\), expected \(2, 6\)'),
        (lambda s, t, i: (s[:0], t[:0], i[:0]), 'sample_idx holds no sample, expected at least'),
        (lambda s, t, i: (s, t, i[:1]), r's_feats has shape \(2, 6\), expected \(1, 6\)'),
        (lambda s, t, i: (s, t, i.float()), 'sample_idx is torch.float32.*SampleField'),
        (lambda s, t, i: (s, t, i + 36), 'sample_idx 40 is outside the memory bank of 40 rows'),
        (lambda s, t, i: (s, t, i - 5), 'sample_idx -1 is outside'),
        (lambda s, t, i: (s * 3, t, i), 's_feats: a student embedding has L2 norm 3, exp'),
        (lambda s, t, i: (nan_row(s), t, i), 's_feats: 1 of 2 student embeddings are NaN'),
        (lambda s, t, i: (s, nan_row(t), i), 't_feats: 1 of 2 teacher embeddings are NaN'),
        (
            lambda s, t, i: (s, t, i, torch.tensor([0, 3])),
            'sample 9 has label 3, the memory bank.s row has 1; the batch comes',
        ),
        (
            lambda s, t, i: (s, t, i, torch.zeros(3).long()),
            r'labels is torch.int64 of shape \(3,\), expected .* shape \(2,\)',
        ),
        (
            lambda s, t, i: (s, t, i, None, torch.zeros(2, 8).long()),
            r'contrast_idx is .* \(2, 8\), expected .* \(2, 9\): \(B, 1 \+ K\).*set num_negatives',
        ),
        (
            lambda s, t, i: (s, t, i, None, torch.ones(2, 9)),
            r'contrast_idx is torch.float32 of shape \(2, 9\), expected int64',
        ),
        (lambda s, t, i: (s, t, i, None, torch.full((2, 9), 40)), 'contrast_idx 40 is outside'),
    ],
)
def test_bad_input(loss, spoil, message):
    before = loss.bank.student.clone()
    with pytest.raises(ValueError, match=message):
        loss(*spoil(*batch([4, 9])))
    assert loss.bank.pending is None
    assert torch.equal(loss.bank.student, before)


def test_negatives_drawn_before(loss):
    """Several losses can share one draw; the next step draws others."""
    *feats, ids = batch([4, 9, 21])
    loss.bank.resize(400, torch.arange(400) % 4, seed=0)
    drawn = loss.draw(ids)
    values = []
    for negatives in (drawn, drawn, None):
        values.append(loss(*feats, ids, negatives=negatives))
        loss.bank.discard()
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_drawing_checks_the_ids(loss):
    with pytest.raises(ValueError, match='sample_idx 40 is outside'):
        loss.draw(torch.tensor([40]))
    with pytest.raises(ValueError, match='contrast_idx 41 is outside'):
        loss.draw(torch.tensor([4]), torch.full((1, 9), 41))
    with pytest.raises(RuntimeError, match=r'MemoryBankHook is missing.*bank.resize\('):
        CRDLoss(6, 8).draw(torch.tensor([4]))


def test_right_labels_pass(loss):
    """And any, such as several per sample, where classes do not matter."""
    assert torch.isfinite(loss(*batch([4, 9]), torch.tensor([0, 1])))
    loss.bank.discard()
    loss.exclude = 'instance'
    assert torch.isfinite(loss(*batch([4, 9]), torch.rand(2, 7)))


HALVES = [torch.float16, torch.bfloat16, torch.float32]


@pytest.mark.parametrize('teacher_dtype', HALVES)
@pytest.mark.parametrize('student_dtype', HALVES)
@pytest.mark.parametrize('autocast', [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('sharded', [False, True])
def test_any_pair_of_types_in_any_autocast(sharded, autocast, student_dtype, teacher_dtype):
    """Autocast refuses to stack what is of the other half type."""
    torch.manual_seed(0)
    feats = [F.normalize(torch.randn(3, 8), dim=1) for _ in '12']
    feats = [
        feat.to(dtype).requires_grad_()
        for feat, dtype in zip(feats, (student_dtype, teacher_dtype))
    ]
    exact = [feat.detach().float().requires_grad_() for feat in feats]
    results = []
    for given, kind in ((feats, autocast), (exact, None)):
        loss = CRDLoss(8, 16, num_samples=20, exclude='instance', negatives='all', sharded=sharded)
        loss.bank.resize(20, seed=1)
        with torch.autocast('cpu', kind, enabled=kind is not None):
            value = loss(*given, torch.arange(3))
        value.backward()
        loss.bank.commit()
        results.append(
            (value, loss.bank.student, loss.bank.teacher, *(feat.grad.float() for feat in given))
        )
    for feat in feats:
        assert feat.grad.dtype == feat.dtype
    for found, wanted in zip(*results):
        torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-3)
    assert torch.equal(results[0][0], results[1][0])


def test_the_signature_shows_the_arguments():
    """The dry run names the nearest one to a misspelt argument."""
    assert list(inspect.signature(CRDLoss).parameters)[:3] == [
        'embed_dim',
        'num_negatives',
        'temperature',
    ]


def test_number_of_negatives_follows_from_the_training_set():
    """16,384 of the 50,000 images of CIFAR-100, the same share of fewer, never more."""
    for rows, expected in ((2, 1), (100, 32), (5000, 1638), (50000, 16384), (100000, 16384)):
        loss = CRDLoss(embed_dim=1)
        loss.bank.resize(rows)
        assert loss.num_negatives == expected
    assert CRDLoss(num_negatives=7, num_samples=100).num_negatives == 7
