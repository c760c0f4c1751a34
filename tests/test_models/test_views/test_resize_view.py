"""ResizeView: Pillow's numbers, and errors."""

import numpy as np
import pytest
import torch
from PIL import Image

from crd_plugin.models import ResizeView


@pytest.mark.parametrize('size', [4, 8, 12])
def test_images_are_those_of_pillow(size):
    image = np.random.RandomState(0).rand(8, 8).astype(np.float32)
    expected = Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)
    found = ResizeView(size)(torch.from_numpy(image)[None, None])
    np.testing.assert_allclose(found[0, 0], np.asarray(expected), atol=1e-5)


@pytest.mark.parametrize('size', [0, 2.5, (4, 4)])
def test_wrong_size(size):
    with pytest.raises(ValueError, match='^size is .*, expected'):
        ResizeView(size)
