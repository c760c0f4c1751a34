"""ATLoss, FSPLoss, KDSVDLoss and NSTLoss against the published numbers and plain loops."""

import pytest
import torch

from crd_plugin.models.losses import ATLoss, FSPLoss, KDSVDLoss, NSTLoss, map_losses
from crd_plugin.ops import right_singular_vectors
from tests import golden, method_cases

FSP_SHAPES = [(2, 4, 4), (3, 4, 4), (2, 2, 2)]
KDSVD_CASES = ['zoo_kdsvd', 'zoo_kdsvd_mixed_spatial']
# Maps of student and teacher with more positions than channels, and the reverse.
NST_FORMS = {'positions': [(2, 6, 2, 2), (2, 7, 2, 2)], 'channels': [(2, 2, 3, 3), (2, 3, 3, 3)]}


@pytest.mark.parametrize('power', [1, 2])
def test_at_against_a_loop(power):

    def attention(x):
        """Unit attention of one map (C, H, W), number by number."""
        a = [
            sum(x[c, i, j].abs() ** power for c in range(x.size(0))) / x.size(0)
            for i in range(x.size(1))
            for j in range(x.size(2))
        ]
        norm = sum(value**2 for value in a).sqrt()
        return [value / norm for value in a]

    def loop(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher):
            t = method_cases.halved(t) if t.size(2) == 2 * s.size(2) else t
            pairs = [pair for b in range(2) for pair in zip(attention(s[b]), attention(t[b]))]
            total = total + sum((p - q) ** 2 for p, q in pairs) / len(pairs)
        return total

    # The second teacher map is higher.
    shapes = [(2, 3, 4, 4), (2, 2, 2, 2)], [(2, 4, 4, 4), (2, 3, 4, 4)]
    method_cases.check_against_loop(ATLoss(power=power), loop, *method_cases.random_pair(*shapes))


def fsp_maps(shapes=FSP_SHAPES, **kwargs):
    return method_cases.random_maps(*((3, *shape) for shape in shapes), **kwargs)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_flows(dtype):
    case = golden.load('zoo_fsp')
    student, teacher = method_cases.features(case, dtype)
    suffix = '_f64' if dtype == torch.float64 else ''
    for i, (s, t) in enumerate(zip(map_losses.flows(student), map_losses.flows(teacher))):
        golden.assert_value((s - t).square().mean(), case[f'loss_{i}{suffix}'])


def test_fsp_against_a_loop():

    def product(bottom, top, b, c, d):
        step = bottom.size(-1) // top.size(-1)
        total = 0.0
        for i in range(top.size(2)):
            for j in range(top.size(3)):
                block = bottom[b, d, i * step : (i + 1) * step, j * step : (j + 1) * step]
                total = total + block.mean() * top[b, c, i, j]
        return total / (top.size(2) * top.size(3))

    def loop(s_feats, t_feats):
        total = 0.0
        for i in range(2):
            (s_low, s_top), (t_low, t_top) = (side[i : i + 2] for side in (s_feats, t_feats))
            gaps = [
                product(s_low, s_top, b, c, d) - product(t_low, t_top, b, c, d)
                for b in range(3)
                for c in range(s_top.size(1))
                for d in range(s_low.size(1))
            ]
            total = total + sum(gap**2 for gap in gaps) / len(gaps)
        return total

    method_cases.check_against_loop(FSPLoss(), loop, fsp_maps(), fsp_maps(seed=1))


@pytest.mark.parametrize(
    'shapes, text',
    [
        (
            [(2, 4, 4), (5, 4, 4), (2, 2, 2)],
            r'equally many map by map; the student has \[2, 5, 2\], '
            r'the teacher \[2, 3, 2\]. Such a pair has no FSP \("n/a"',
        ),
        (
            [(2, 4, 4), (3, 4, 4), (2, 4, 4)],
            r'equal height and width; the student has .*\(4, 4\)\], the '
            r'teacher .*\(2, 2\)\]. Such a pair has no FSP',
        ),
    ],
)
def test_pairs_that_have_no_fsp(shapes, text):
    for refused in (
        lambda: FSPLoss(shapes, FSP_SHAPES),
        lambda: FSPLoss().infer_width(fsp_maps(shapes), fsp_maps()),
        lambda: FSPLoss()(fsp_maps(shapes), fsp_maps()),
    ):
        with pytest.raises(ValueError, match=text):
            refused()


def test_neighbours_need_two_layers():
    maps = fsp_maps(FSP_SHAPES[:1])
    with pytest.raises(
        ValueError, match='FSP compares neighbouring layers, expected at least 2, but got 1'
    ):
        FSPLoss()(maps, maps)
    with pytest.raises(ValueError, match='s_shapes has 2 layers and t_shapes 3'):
        FSPLoss(FSP_SHAPES[:2], FSP_SHAPES)
    with pytest.raises(ValueError, match='KDSVD compares neighbouring layers'):
        KDSVDLoss()(maps, maps)


def kdsvd_maps(dtype=torch.float64):
    return method_cases.random_pair(*[[(2, 3, 3, 3), (2, 6, 2, 2)]] * 2, dtype)


def close(actual, expected):
    """To 1e-3: singular vectors do not come more exactly."""
    actual, atol = actual.detach().to(expected.dtype), 1e-3 * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=atol)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
@pytest.mark.parametrize('name', KDSVD_CASES)
def test_published_kdsvd(name, dtype, monkeypatch):
    """With the signs that the SVD gave the teacher's vectors there."""
    case = golden.load(name)
    student, teacher = method_cases.features(case, dtype)
    layers = iter(range(len(student)))

    def as_stored(vectors):
        stored = case[f'V_t{next(layers)}'].to(dtype)
        cosine = (vectors * stored).sum(1, keepdim=True)
        close(cosine.abs(), torch.ones(cosine.shape, dtype=dtype))
        return vectors * cosine.sign()

    monkeypatch.setattr(map_losses, '_orient', as_stored)
    value = KDSVDLoss(num_vectors=int(case['k']))(student, teacher)
    assert value.dtype == dtype
    close(value, case['loss_f64' if dtype == torch.float64 else 'loss'])
    value.backward()
    for i, feat in enumerate(student):
        close(feat.grad, case[f'grad_s{i}'])


@pytest.mark.parametrize('name', KDSVD_CASES)
def test_published_alignment(name):
    case = golden.load(name)
    for i in range(sum(key.startswith('aligned') for key in case)):
        x = case[f's{i}'].flatten(2).transpose(1, 2)
        vectors, _ = right_singular_vectors(x, 4)
        cosine = (vectors * case[f'V_s{i}']).sum(1)
        close(cosine.abs(), torch.ones(cosine.shape))
        close(map_losses.align(vectors, case[f'V_t{i}']), case[f'aligned_V_s{i}'])


@pytest.mark.parametrize('k', [1, 2])
def test_kdsvd_against_a_loop(k):

    def by_svd(x, k):
        _, s, vh = torch.linalg.svd(x.flatten(1).t(), full_matrices=False)
        return vh[:k], s[:k] / s[:k].norm()

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
                        (-((upper[side][i][:, None] - lower[side][i]) ** 2) / 8).exp()
                        for side in (0, 1)
                    ]
                    total = total + ((r[0] - r[1]) ** 2).sum()
        return total / 2

    method_cases.check_against_loop(KDSVDLoss(num_vectors=k), loop, *kdsvd_maps(), rtol=1e-8)


def test_sign_of_the_svd_does_not_count(monkeypatch):
    maps = kdsvd_maps()
    expected = KDSVDLoss()(*maps)

    def flipped(x, k):
        v, sigma = right_singular_vectors(x, k)
        return -v, sigma

    monkeypatch.setattr(map_losses, 'right_singular_vectors', flipped)
    torch.testing.assert_close(KDSVDLoss()(*maps), expected)


def test_dead_maps_have_a_finite_gradient():
    student, teacher = kdsvd_maps(torch.float32)
    student[0].data[:, 1:] = 0
    student[1].data.zero_()
    value = KDSVDLoss()(student, teacher)
    value.backward()
    assert torch.isfinite(value)
    assert all(torch.isfinite(s.grad).all() for s in student)


def test_maps_without_comparable_vectors():
    student, teacher = kdsvd_maps()
    text = r'student has \[3, 3\], the teacher \[3, 6\]. Such a pair has no KDSVD'
    with pytest.raises(ValueError, match=text):
        KDSVDLoss()([student[0], student[0]], teacher)
    with pytest.raises(ValueError, match='num_vectors is 4, but a map of .* has fewer'):
        KDSVDLoss(num_vectors=4)(student, teacher)


def nst_maps(form, dtype=torch.float64):
    s_shape, t_shape = NST_FORMS[form]
    return method_cases.random_pair([s_shape], [t_shape], dtype)


@pytest.mark.parametrize('form', [*NST_FORMS, 'two layers and heights'])
def test_nst_against_a_loop(form):
    """All pairs of channels of each sample."""

    def kernel(a, b):
        units = [[c.flatten() / (c**2).sum().sqrt() for c in x] for x in (a, b)]
        values = [(p * q).sum() ** 2 for p in units[0] for q in units[1]]
        return sum(values) / len(values)

    def loop(student, teacher):
        total = 0.0
        for s, t in zip(student, teacher):
            t = method_cases.halved(t) if t.size(2) == 2 * s.size(2) else t
            for a, b in zip(s, t):
                total = total + (kernel(b, b) + kernel(a, a) - 2 * kernel(a, b)) / len(s)
        return total

    shapes = [(2, 3, 2, 2), (2, 2, 3, 3)], [(2, 4, 4, 4), (2, 3, 3, 3)]
    maps = nst_maps(form) if form in NST_FORMS else method_cases.random_pair(*shapes)
    method_cases.check_against_loop(NSTLoss(), loop, *maps)


@pytest.mark.parametrize('form, sizes', [('positions', [16, 16]), ('channels', [4, 9, 6])])
def test_the_smaller_product_is_taken(monkeypatch, form, sizes):
    """Per sample, as many numbers as a square of positions or of channels."""
    found, multiply = [], torch.Tensor.__matmul__

    def watch(one, other):
        result = multiply(one, other)
        found.append(result[0].numel())
        return result

    monkeypatch.setattr(torch.Tensor, '__matmul__', watch)
    NSTLoss()(*nst_maps(form))
    assert found == sizes


@pytest.mark.parametrize('form', NST_FORMS)
def test_nst_edges(form):
    """No product in half precision; dead channels have gradient 0, equal maps no discrepancy."""
    student, teacher = sides = nst_maps(form, torch.float32)
    huge = [[x * 300 for x in side] for side in sides]
    with torch.autocast('cpu', torch.float16):
        value = NSTLoss()(*huge)
    torch.testing.assert_close(value, NSTLoss()(*huge), rtol=1e-5, atol=0)
    assert NSTLoss()(*[[s.double() for s in student]] * 2).abs() < 1e-15
    student[0].data[:, 0] = 0
    NSTLoss()(student, teacher).backward()
    gradient = student[0].grad
    assert torch.equal(gradient[:, 0], torch.zeros_like(gradient[:, 0]))
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0
