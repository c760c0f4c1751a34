"""FSPLoss against the published numbers, and its contract."""

import pytest
import torch

from crd_plugin.models.losses import FSPLoss
from crd_plugin.models.losses.fsp_loss import flows
from tests import golden, method_cases

SHAPES = [(2, 4, 4), (3, 4, 4), (2, 2, 2)]


def maps(shapes=SHAPES, batch=3, **kwargs):
    """Random maps of some shapes."""
    return method_cases.random_maps(*((batch, *shape) for shape in shapes), **kwargs)


@pytest.mark.parametrize('dtype', method_cases.DTYPES)
def test_published_numbers(dtype):
    """The case has maps of two sizes, which RepDistiller lets pass."""
    case = golden.load('zoo_fsp')
    method_cases.check(FSPLoss(match_sizes=False), case, dtype, by_layer=False)
    student, teacher = method_cases.features(case, dtype)
    suffix = '_f64' if dtype == torch.float64 else ''
    for i, (s, t) in enumerate(zip(flows(student), flows(teacher))):
        golden.assert_value((s - t).square().mean(), case[f'loss_{i}{suffix}'])


def test_against_a_loop():
    student, teacher = maps(), maps(seed=1)

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

    method_cases.check_against_loop(FSPLoss(), loop, student, teacher)


def test_a_pair_is_checked_before_training():
    loss = FSPLoss()
    loss.infer_width(s_feats=maps(), t_feats=maps())
    assert not loss.needs_width and not loss.state_dict()


OTHER_CHANNELS = [(2, 4, 4), (5, 4, 4), (2, 2, 2)]
OTHER_SIZES = [(2, 4, 4), (3, 4, 4), (2, 4, 4)]


@pytest.mark.parametrize(
    'shapes, text',
    [
        (
            OTHER_CHANNELS,
            r'equally many map by map; the student has \[2, 5, 2\], '
            r'the teacher \[2, 3, 2\]. Such a pair has no FSP \("n/a"',
        ),
        (
            OTHER_SIZES,
            r'equal height and width; the student has .*\(4, 4\)\], the '
            r'teacher .*\(2, 2\)\]. Such a pair has no FSP',
        ),
    ],
)
def test_pairs_that_are_refused(shapes, text):
    for refused in (
        lambda: FSPLoss(shapes, SHAPES),
        lambda: FSPLoss().infer_width(maps(shapes), maps()),
        lambda: FSPLoss()(maps(shapes), maps()),
    ):
        with pytest.raises(ValueError, match=text):
            refused()


def test_numbers_of_maps():
    with pytest.raises(ValueError, match='1 maps and .* 1; .*at least two'):
        FSPLoss()(maps(SHAPES[:1]), maps(SHAPES[:1]))
    with pytest.raises(ValueError, match='2 maps and the teacher 3'):
        FSPLoss(SHAPES[:2], SHAPES)
