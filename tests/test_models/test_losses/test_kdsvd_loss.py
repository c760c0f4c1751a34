"""KDSVDLoss against the published numbers, and its contract."""

import pytest
import torch

from crd_plugin.models.losses import KDSVDLoss, kdsvd_loss
from crd_plugin.ops import right_singular_vectors
from tests import golden, method_cases

CASES = ['zoo_kdsvd', 'zoo_kdsvd_mixed_spatial']
SHAPES = [(2, 3, 3, 3), (2, 6, 2, 2)]


def features(dtype=torch.float64, shapes=SHAPES):
    """Two layers."""
    return [method_cases.random_maps(*shapes, dtype=dtype, seed=i) for i in (0, 1)]


def close(actual, expected):
    """To 1e-3: singular vectors do not come more exactly."""
    torch.testing.assert_close(
        actual.detach().to(expected.dtype),
        expected,
        rtol=1e-3,
        atol=1e-3 * float(expected.abs().max()),
    )


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', CASES)
def test_published_numbers(name, dtype, monkeypatch):
    """With the signs that the SVD gave the teacher's vectors there."""
    case = golden.load(name)
    student, teacher = method_cases.features(case, dtype)
    layers = iter(range(len(student)))

    def as_stored(vectors):
        stored = case[f'V_t{next(layers)}'].to(dtype)
        cosine = (vectors * stored).sum(1, keepdim=True)
        close(cosine.abs(), torch.ones(cosine.shape, dtype=dtype))
        return vectors * cosine.sign()

    monkeypatch.setattr(kdsvd_loss, '_orient', as_stored)
    value = KDSVDLoss(num_vectors=int(case['k']))(student, teacher)
    assert value.dtype == dtype
    close(value, case['loss_f64' if dtype == torch.float64 else 'loss'])
    value.backward()
    for i, feat in enumerate(student):
        close(feat.grad, case[f'grad_s{i}'])


@pytest.mark.parametrize('name', CASES)
def test_published_alignment(name):
    case = golden.load(name)
    for i in range(sum(key.startswith('aligned') for key in case)):
        x = case[f's{i}'].flatten(2).transpose(1, 2)
        vectors, _ = right_singular_vectors(x, 4)
        cosine = (vectors * case[f'V_s{i}']).sum(1)
        close(cosine.abs(), torch.ones(cosine.shape))
        close(kdsvd_loss.align(vectors, case[f'V_t{i}']), case[f'aligned_V_s{i}'])


def by_svd(x, k):
    """Torch's vectors of one sample, (k, C), and their weights."""
    _, s, vh = torch.linalg.svd(x.flatten(1).t(), full_matrices=False)
    return vh[:k], s[:k] / s[:k].norm()


@pytest.mark.parametrize('k', [1, 2])
def test_against_a_loop(k):

    def vectors(s, t):
        v_t, weight = by_svd(t, k)
        v_t = [v * v.sum().sign() for v in v_t]
        candidates, _ = by_svd(s, k + 3)
        v_s = []
        for v in v_t:
            cosine = [(c * v).sum() for c in candidates]
            best = max(cosine, key=abs)
            v_s.append(best.sign().detach() * candidates[[c is best for c in cosine].index(True)])
        return [[v * w for v, w in zip(side, weight)] for side in (v_s, v_t)]

    def loop(student, teacher):
        total = 0.0
        for b in range(2):
            layers = [vectors(s[b], t[b]) for s, t in zip(student, teacher)]
            for lower, upper in zip(layers, layers[1:]):
                for i in range(k):
                    r = [
                        [
                            (-((p - q) ** 2) / 8).exp()
                            for p in upper[side][i]
                            for q in lower[side][i]
                        ]
                        for side in (0, 1)
                    ]
                    total = total + sum((p - q) ** 2 for p, q in zip(*r))
        return total / 2

    method_cases.check_against_loop(KDSVDLoss(num_vectors=k), loop, *features(), rtol=1e-8)


def test_sign_of_the_routine_does_not_count(monkeypatch):
    student, teacher = features()
    expected = KDSVDLoss()(student, teacher)
    vectors = right_singular_vectors

    def flipped(x, k):
        v, sigma = vectors(x, k)
        return -v, sigma

    monkeypatch.setattr(kdsvd_loss, 'right_singular_vectors', flipped)
    torch.testing.assert_close(KDSVDLoss()(student, teacher), expected)


def test_dead_maps_have_a_finite_gradient():
    student, teacher = features(torch.float32)
    student[0].data[:, 1:] = 0
    student[1].data.zero_()
    value = KDSVDLoss()(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(s.grad).all() for s in student)


def test_errors():
    student, teacher = features()
    loss = KDSVDLoss()
    with pytest.raises(ValueError, match='expected at least 2'):
        loss(student[:1], teacher[:1])
    with pytest.raises(
        ValueError,
        match=r's_feats\[1\] has 3 channels and '
        r't_feats\[1\] 6.*teacher\'s widths',
    ):
        loss([student[0], student[0]], teacher)
    with pytest.raises(ValueError, match=r's_feats\[0\] has 3 singular'):
        KDSVDLoss(num_vectors=4)(student, teacher)
