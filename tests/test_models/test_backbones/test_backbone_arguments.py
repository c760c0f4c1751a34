"""Arguments of the backbones for 32x32 images that are out of range."""

import pytest

from crd_plugin.models import backbones

RESNET, WRN, VGG = (dict(depth=depth) for depth in (8, 16, 8))
CASES = [
    ('CIFARResNet', dict(depth=10), r'depth must be 6 n \+ 2 .* but got 10'),
    ('CIFARResNet', dict(depth=2), 'but got 2'),
    ('CIFARResNet', dict(depth='8'), "but got '8'"),
    ('CIFARResNet', dict(RESNET, base_channels=0), 'base_channels is (0|-1), expected at least 1'),
    ('CIFARResNet', dict(RESNET, out_indices=(3,)), r'out_indices .* but got \(3,\)'),
    ('CIFARResNet', dict(RESNET, out_indices=()), r'out_indices .* but got \(\)'),
    ('CIFARResNet', dict(RESNET, out_indices=2), 'out_indices must be .* but got 2'),
    ('CIFARResNet', dict(RESNET, out_indices='2'), "out_indices must be .* but got '2'"),
    ('CIFARResNet', dict(RESNET, out_indices=(1, 0)), 'ascending'),
    ('CIFARWideResNet', dict(depth=14), r'depth must be 6 n \+ 4 .* but got 14'),
    ('CIFARWideResNet', dict(depth=4), 'but got 4'),
    ('CIFARWideResNet', dict(WRN, widen_factor=0), 'widen_factor is (0|-1), expected at least 1'),
    ('CIFARWideResNet', dict(WRN, drop_rate=1), r'drop_rate .* \[0, 1\), but got 1'),
    ('CIFARWideResNet', dict(WRN, out_indices=(3,)), r'out_indices .* but got \(3,\)'),
    ('CIFARVGG', dict(depth=12), r'depth must be one of \(8, 11, 13, 16, 19\), but got 12'),
    ('CIFARVGG', dict(VGG, out_indices=(4,)), r'out_indices .* but got \(4,\)'),
    ('CIFARMobileNetV2', dict(widen_factor=0), 'widen_factor must be .* but got 0'),
    ('CIFARMobileNetV2', dict(expansion=0), 'expansion is (0|-1), expected at least 1'),
    ('CIFARMobileNetV2', dict(out_indices=(4,)), r'out_indices .* but got \(4,\)'),
    ('CIFARShuffleNetV1', dict(groups=4), r'groups must be one of \(2, 3\), but got 4'),
    ('CIFARShuffleNetV1', dict(in_channels=0), 'in_channels is (0|-1), expected at least 1'),
    ('CIFARShuffleNetV1', dict(out_indices=()), 'out_indices'),
    ('CIFARShuffleNetV2', dict(widen_factor=3), r'widen_factor must be one of .* but got 3'),
    ('CIFARShuffleNetV2', dict(out_indices=(0, 0)), 'out_indices'),
]


@pytest.mark.parametrize('name, kwargs, message', CASES)
def test_arguments_out_of_range(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        getattr(backbones, name)(**kwargs)
