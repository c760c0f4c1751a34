"""MultiViewPipeline: independent views, by pipelines as they are."""

from unittest import mock

import numpy as np
import pytest
import torch
from mmpretrain.registry import TRANSFORMS as MMPRETRAIN_TRANSFORMS

from crd_plugin.registry import TRANSFORMS
from tests.test_datasets.toy_dataset import PACK

CROP = [
    dict(type='RandomCrop', crop_size=8, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    PACK,
]


@MMPRETRAIN_TRANSFORMS.register_module()
class LoadCounted:
    """Makes an image and counts how often."""

    count = 0

    def __call__(self, results):
        LoadCounted.count += 1
        return {**results, **sample()}


def blacken(results):
    """Write into the image that is given."""
    results['img'][:] = results['img'] // 2
    return results


def build(transforms, **changes):
    return TRANSFORMS.build(
        dict(type='crd_plugin.MultiViewPipeline', transforms=transforms, **changes)
    )


def sample():
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    return dict(img=image, gt_label=3, img_shape=(8, 8))


@pytest.mark.parametrize('num_views', [1, 3, 4])
def test_views_are_drawn_independently(num_views):
    """Each like a single run of the pipeline, one after the other."""
    views = build(CROP, num_views=num_views)
    np.random.seed(0)
    out = views(sample())
    assert set(out) == {'inputs', 'data_samples'}
    assert len(out['inputs']) == num_views and int(out['data_samples'].gt_label) == 3
    np.random.seed(0)
    pipeline = [MMPRETRAIN_TRANSFORMS.build(cfg) for cfg in CROP]
    for view in out['inputs']:
        results = sample()
        for transform in pipeline:
            results = transform(results)
        assert torch.equal(view, results['inputs'])
    assert len(torch.stack(out['inputs']).unique(dim=0)) == num_views


def test_what_one_view_writes_the_others_do_not_see():
    given = sample()
    expected = torch.from_numpy(given['img'] // 2).permute(2, 0, 1)
    for view in build([blacken, PACK])(given)['inputs']:
        assert torch.equal(view, expected)


@pytest.mark.parametrize('load', [dict(type='mmpretrain.LoadCounted'), LoadCounted()])
def test_loading_is_done_once(load):
    LoadCounted.count = 0
    out = build([load, blacken, load, PACK])(dict(gt_label=1))
    # The first one once; the one further on belongs to the view.
    assert LoadCounted.count == 1 + 3
    assert len(out['inputs']) == 3


def test_none_has_another_sample_drawn():
    while_loading = dict(type='LoadImageFromFile', ignore_empty=True)
    assert build([while_loading, PACK])(dict(img_path='nowhere.png')) is None
    # In the second view.
    broken = mock.Mock(side_effect=[sample(), None])
    assert build([broken, PACK])(sample()) is None


def test_errors():
    with pytest.raises(ValueError, match='num_views is 0, expected at least'):
        build(CROP, num_views=0)
    with pytest.raises(ValueError, match=r"give \['gt_label', 'img', .*end them with PackInputs"):
        build([blacken])(sample())
