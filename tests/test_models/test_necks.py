"""LayerFeature: what it picks, its size, errors."""

import pytest
import torch

from crd_plugin.models import LayerFeature

MAPS = (torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4), torch.randn(2, 7))


@pytest.mark.parametrize('layer', [0, 1, 2, -1, -2])
def test_one_layer_is_flattened(layer):
    (feature,) = LayerFeature(layer)(MAPS)
    assert torch.equal(feature, MAPS[layer].reshape(2, -1))


def test_maps_are_pooled():
    (feature,) = LayerFeature(0, size=2)(MAPS)
    expected = torch.stack(
        [MAPS[0][..., i : i + 4, j : j + 4].amax((2, 3)) for i in (0, 4) for j in (0, 4)], 2
    )
    assert torch.equal(feature, expected.flatten(1))
    assert torch.equal(LayerFeature(2, size=2)(MAPS)[0], MAPS[2])


def test_errors():
    with pytest.raises(ValueError, match="^layer is 'conv5', expected the index of an output.$"):
        LayerFeature('conv5')
    with pytest.raises(ValueError, match='^size is 0, expected at least 1'):
        LayerFeature(0, size=0)
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f'^layer is {layer}, but the backbone has 3 outputs'):
            LayerFeature(layer)(MAPS)
