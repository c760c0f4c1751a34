"""Tests of bringing files to the order of a data set's arrays."""

import numpy as np

from crd_plugin.datasets import FilesToRGB


def test_only_images_of_an_inferencer_change():
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    found = FilesToRGB()(dict(img=image, ori_shape=(2, 4)))
    assert found['ori_shape'] == (2, 4) and found['img'].flags['C_CONTIGUOUS']
    np.testing.assert_array_equal(found['img'], image[:, :, [2, 1, 0]])
    sample = dict(img=image, sample_idx=0)
    assert FilesToRGB()(sample) is sample
