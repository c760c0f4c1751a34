"""CRD without a bank: the contract of CRDLoss(negatives='batch')."""

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crd_plugin.models import CRDLoss
from crd_plugin.models.losses.in_batch_crd_loss import InBatchCRDLoss
from crd_plugin.ops import critic_loss, draw_negatives, nce, partition_sums, row_keys
from tests.meta_device import replace_autocast

B, D = 6, 5
LABELS = torch.tensor([0, 1, 0, 2, 1, 2])


def build(**kwargs):
    return CRDLoss(D, negatives='batch', **kwargs)


def others(size):
    """Every other sample of a batch, as rows of a bank."""
    return draw_negatives('all', torch.arange(size), row_keys(size, LABELS.device), size - 1)


def batch(size=B, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(size, D, generator=generator, dtype=dtype), dim=1).requires_grad_()
        for _ in range(2)
    ]


@pytest.mark.parametrize('exclude', ['class', 'instance'])
def test_info_nce_is_a_symmetric_cross_entropy(exclude):
    """The loss of CLIP, its two directions summed."""
    loss = build(objective='infonce', exclude=exclude, temperature=0.3)
    s, t = batch()
    value = loss(s, t, labels=LABELS)
    grads = torch.autograd.grad(value, (s, t))
    logits = s @ t.t() / 0.3
    if exclude == 'class':
        # Classes have two samples: of five others, four count 5 / 4.
        same = LABELS[:, None] == LABELS
        logits = logits + math.log(5 / 4)
        logits = logits.masked_fill(same, -math.inf)
        logits = logits.diagonal_scatter((s * t).sum(1) / 0.3)
    target = torch.arange(B)
    expected = F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)
    torch.testing.assert_close(value, expected)
    for grad, other in zip(grads, torch.autograd.grad(expected, (s, t))):
        torch.testing.assert_close(grad, other)


def test_nce_takes_its_constants_from_the_first_batch():
    loss = build(exclude='instance')
    log_z = None
    for s, t in (batch(seed=seed) for seed in range(2)):
        anchors, keys = torch.stack([s, t]), [t.detach(), s.detach()]
        if log_z is None:
            log_sum, number = partition_sums(anchors, keys, others(B), 0.07)
            log_z = log_sum - number.log() + math.log(B)
        expected = nce(anchors, keys, others(B), log_z, 0.07).loss.sum()
        torch.testing.assert_close(loss(s, t), expected)
        torch.testing.assert_close(loss.log_mean, log_z - math.log(B))


def test_gradient_flows_through_anchors_and_keys():
    """Without keys' gradient the student would get half of it."""
    for objective in ('nce', 'infonce'):
        loss = build(objective=objective, exclude='instance')
        s, t = batch()
        loss(s, t).backward()
        as_anchor = torch.autograd.grad(_direction(loss, s, t.detach(), objective), s)[0]
        as_key = torch.autograd.grad(_direction(loss, t.detach(), s, objective), s)[0]
        assert as_key.abs().max() > 0.01 * as_anchor.abs().max()
        torch.testing.assert_close(s.grad, as_anchor + as_key)


def _direction(loss, anchor, rows, objective):
    weight = 1 - torch.eye(B, dtype=anchor.dtype)
    mean = loss.log_mean[0] if objective == 'nce' else None
    return critic_loss(anchor @ rows.t() / 0.07, torch.arange(B), weight, mean)[0].mean()


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_copies_of_a_sample_are_no_negatives_of_each_other(objective):
    s, t = batch()
    ids = torch.tensor([4, 9, 4, 7, 1, 2])
    plain = build(objective=objective, exclude='instance')(s, t)
    aware = build(objective=objective, exclude='instance')(s, t, ids)
    by_class = build(objective=objective)(s, t, ids, labels=ids)
    assert not torch.isclose(plain, aware, rtol=1e-7)
    torch.testing.assert_close(aware, by_class)
    distinct = build(objective=objective, exclude='instance')(
        s, t, torch.tensor([3, 9, 4, 7, 1, 2])
    )
    torch.testing.assert_close(distinct, plain)


def test_bound_is_log_k_minus_info_nce():
    loss = build(objective='infonce', exclude='instance')
    value = loss(*batch())
    torch.testing.assert_close(loss.mi_bound, math.log(B - 1) - value / 2)
    assert not loss.mi_bound.requires_grad


@pytest.mark.parametrize('weight', [0.8, 0.0])
def test_loss_weight_counts(weight):
    plain = build(exclude='instance')(*batch())
    value = build(exclude='instance', loss_weight=weight)(*batch())
    torch.testing.assert_close(value, weight * plain)


def test_no_bank_in_state_and_constants_in_it():
    loss = build(exclude='instance')
    assert loss.bank is None
    assert list(loss.state_dict()) == ['log_mean']
    assert list(loss.parameters()) == []
    fresh = copy.deepcopy(loss.state_dict())
    loss(*batch(seed=0))
    resumed = build(exclude='instance')
    resumed.load_state_dict(loss.state_dict())
    assert resumed._has_z
    torch.testing.assert_close(resumed(*batch(seed=1)), loss(*batch(seed=1)), rtol=0, atol=0)
    # A checkpoint from before the first step brings no constants.
    resumed.load_state_dict(fresh)
    assert not resumed._has_z
    other = build(exclude='instance')
    torch.testing.assert_close(resumed(*batch(seed=1)), other(*batch(seed=1)))


def test_the_word_chooses_the_class():
    """Copied, pickled, and loaded from a checkpoint of the former name."""
    loss = build(exclude='instance')
    assert type(loss) is InBatchCRDLoss and type(CRDLoss(D)) is CRDLoss
    own = type('Own', (InBatchCRDLoss,), {})(D, negatives='batch', exclude='instance')
    assert torch.equal(own(*batch()), build(exclude='instance')(*batch()))
    loss(*batch())
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert type(twin) is InBatchCRDLoss and torch.equal(twin.log_mean, loss.log_mean)
    former = nn.ModuleDict(dict(loss_crd=build()))
    former.load_state_dict({'loss_crd.batch.log_mean': loss.log_mean})
    assert former['loss_crd']._has_z and torch.equal(former['loss_crd'].log_mean, loss.log_mean)


def test_only_training_fixes_the_constants():
    loss = build(exclude='instance').eval()
    value = loss(*batch())
    assert not loss._has_z and loss.log_mean.isnan().all()
    torch.testing.assert_close(loss.train()(*batch()), value)
    assert loss._has_z and loss.log_mean.isfinite().all()
    info = build(objective='infonce', exclude='instance')
    info(*batch())
    assert not info._has_z


@pytest.mark.parametrize(
    'exclude, key, kind', [('class', 'labels', 'class'), ('instance', 'sample_idx', 'sample')]
)
def test_a_batch_without_negatives_is_told_once(exclude, key, kind, warned):
    loss = build(objective='infonce', exclude=exclude)
    alike = {key: torch.full((B,), 3)}
    loss(*batch(), **{key: LABELS})
    assert warned == []
    for _ in range(2):
        assert loss(*batch(), **alike).abs() < 1e-12
    (text,) = warned
    assert f'all samples of a global batch are of one {kind}, so none has a negative' in text
    assert "exclude='instance'" in text and 'drop_last=True' in text


def test_a_device_is_not_waited_for(warned, monkeypatch):
    """There a hook looks now and then."""
    replace_autocast(monkeypatch)
    loss = build(objective='infonce').to('meta')
    feats = [torch.empty(B, D, device='meta') for _ in range(2)]
    loss(*feats, labels=torch.empty(B, dtype=torch.int64, device='meta'))
    assert loss._alone.is_meta and warned == []
    loss._alone = torch.tensor(True)
    loss.warn_if_alone()
    assert len(warned) == 1


@pytest.mark.parametrize('objective', ['nce', 'infonce'])
def test_a_batch_of_one_adds_nothing_and_says_so(objective, warned):
    loss = build(objective=objective, exclude='instance')
    for _ in range(2):
        s, t = batch(1)
        value = loss(s, t)
        value.backward()
        assert value == 0 and s.grad.abs().sum() == 0
    assert not loss._has_z
    assert len(warned) == 1


def test_a_first_batch_without_negatives_leaves_z_unset(warned):
    loss = build()
    s, t = batch()
    value = loss(s, t, labels=torch.full((B,), 3))
    value.backward()
    assert value == 0 and s.grad.abs().sum() == 0 and loss.mi_bound == 0
    assert not loss._has_z and loss.log_mean.isnan().all() and len(warned) == 1
    fresh = build()
    assert loss(*batch(), labels=LABELS) == fresh(*batch(), labels=LABELS)
    assert torch.equal(loss.log_mean, fresh.log_mean)
    # Later ones have it: positives pull.
    assert loss(*batch(), labels=torch.full((B,), 3)) > 0


def test_constants_of_rare_classes_are_means_over_anchors():
    """Every anchor counts as one positive and K negatives, however many it has."""
    loss, labels = build(temperature=0.3), torch.tensor([0, 0, 0, 0, 0, 1])
    s, t = batch()
    loss(s, t, labels=labels)
    e = torch.exp(s @ t.t() / 0.3).detach()
    for side, found in zip((e, e.t()), loss.log_mean):
        means = [side[i][labels != labels[i]].mean() for i in range(B)]
        expected = sum(side[i, i] + (B - 1) * means[i] for i in range(B)) / B**2
        torch.testing.assert_close(found, expected.log())


def test_last_batch_of_another_size():
    """K and N are those of each batch, Z / N stays."""
    loss = build(exclude='instance')
    loss(*batch())
    s, t = batch(3, seed=1)
    anchors, keys = torch.stack([s, t]), [t.detach(), s.detach()]
    expected = nce(anchors, keys, others(3), loss.log_mean + math.log(3), 0.07).loss.sum()
    torch.testing.assert_close(loss(s, t), expected)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_embeddings(dtype):
    loss = build(exclude='instance')
    s, t = (side.detach().to(dtype).requires_grad_() for side in batch())
    with torch.autocast('cpu', dtype):
        value = loss(s, t)
    assert value.dtype == torch.float32 and torch.isfinite(value)
    value.backward()
    assert s.grad.dtype == dtype and s.grad.abs().sum() > 0
    exact = build(exclude='instance')(s.float(), t.float())
    torch.testing.assert_close(value, exact)


@pytest.mark.parametrize(
    'given',
    [
        dict(num_negatives=16384),
        dict(momentum=0.5),
        dict(num_samples=100),
        dict(sharded=True, bank_dtype='float16'),
    ],
)
def test_arguments_of_a_bank_are_refused(given):
    with pytest.raises(
        ValueError, match=f"{', '.join(given)} given, but negatives='batch' has no memory bank"
    ):
        build(**given)
    with pytest.raises(ValueError, match=r"negatives is 'shared', expected one of \('batch',\)"):
        InBatchCRDLoss(8, negatives='shared')


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({}, "labels is None, but exclude='class'.*'instance' for data without labels or with se"),
        (dict(labels=torch.rand(B, 3)), r'labels is torch.float32 of shape \(6, 3\), exp.*\(6,\)'),
        (dict(labels=LABELS - 1), "labels has -1, but exclude='class' needs classes from"),
        (dict(labels=LABELS[:2]), r'labels is torch.int64 of shape \(2,\)'),
        (
            dict(labels=LABELS, contrast_idx=torch.zeros(B, 2)),
            "contrast_idx given, but negatives='batch'",
        ),
        (dict(labels=LABELS, negatives=others(B)), "negatives given, but negatives='batch'"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build()(*batch(), **kwargs)


def test_other_bad_calls(warned):
    s, t = batch()
    loss = build(exclude='instance')
    with pytest.raises(ValueError, match='s_feats holds no sample, expected at least one'):
        loss(s[:0], t[:0])
    assert not warned
    with pytest.raises(ValueError, match=r't_feats has shape \(5, 5\)'):
        loss(s, t[:5])
    with pytest.raises(ValueError, match='a student embedding has L2 norm 2'):
        loss(2 * s, t)
    with pytest.raises(ValueError, match='sample_idx is torch.float64'):
        loss(s, t, torch.zeros(B).double())
    assert not loss._has_z
    with pytest.raises(RuntimeError, match="negatives='batch' draws nothing"):
        loss.draw(torch.arange(3))
    with pytest.raises(ValueError, match="sample_idx is None.*'batch'"):
        CRDLoss(D, num_samples=20, exclude='instance')(s, t)
