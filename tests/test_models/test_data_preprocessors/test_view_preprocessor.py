"""ViewPreprocessor: one view for a network alone and in a distillation."""

import pytest
import torch

from crd_plugin.models import LabView, ViewPreprocessor
from crd_plugin.ops import rgb_to_lab
from tests import small_runs

L = dict(type='crd_plugin.LabView', channels='L')


@pytest.mark.parametrize('to_rgb', [False, True])
def test_pixels_are_put_in_order_viewed_and_normalised(to_rgb):
    preprocess = ViewPreprocessor(LabView('ab'), [6.0, -7.0], [92.0, 101.0], to_rgb=to_rgb)
    raw = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    samples = small_runs.batch()[1]
    found = preprocess(dict(inputs=raw, data_samples=samples), training=True)
    assert [int(sample.gt_label) for sample in found['data_samples']] == list(range(6))
    rgb = raw.flip(1) if to_rgb else raw
    lab = rgb_to_lab(rgb.double() / 255)[:, 1:].float()
    expected = torch.stack([(lab[:, 0] - 6) / 92, (lab[:, 1] + 7) / 101], 1)
    torch.testing.assert_close(found['inputs'], expected, atol=1e-4, rtol=1e-4)


def test_nothing_of_it_is_in_a_checkpoint():
    preprocess = ViewPreprocessor(L, [50.0], [50.0])
    assert preprocess.state_dict() == {}
    assert preprocess.to('meta').view.mean.is_meta


@pytest.mark.parametrize('mean, std', [([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([], [])])
def test_wrong_numbers(mean, std):
    with pytest.raises(ValueError, match='^mean=.* expected as many means as positive deviations'):
        ViewPreprocessor(L, mean, std)


def test_wrong_channels():
    raw = torch.zeros(2, 3, 4, 4)
    with pytest.raises(
        ValueError, match='^the view LabView has 1 channels, but mean and std have 3'
    ):
        ViewPreprocessor(L, [1.0] * 3, [1.0] * 3)(dict(inputs=raw))
