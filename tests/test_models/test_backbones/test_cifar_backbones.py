"""Our backbones: shapes that follow from arguments, modules, values that are out of range.

The numbers of the networks of the CIFAR tables are compared in test_cifar_zoo.py.
"""

import pytest
import torch

from crd_plugin.models import backbones

RESNET, WRN = dict(depth=8), dict(depth=16)
V2_WIDTHS = {0.5: (48, 192, 1024), 1.5: (176, 704, 1024), 2: (244, 976, 2048)}
SHAPES = [
    *(
        (
            'CIFARShuffleNetV2',
            dict(widen_factor=factor, out_indices=(0, 2)),
            (3, 32, 32),
            [(widths[0], 16, 16), (widths[1], 4, 4), (widths[2], 4, 4)],
        )
        for factor, widths in V2_WIDTHS.items()
    ),
    (
        'CIFARShuffleNetV1',
        dict(groups=2, out_indices=(0, 2)),
        (3, 32, 32),
        [(200, 16, 16), (800, 4, 4)],
    ),
    (
        'CIFARMobileNetV2',
        dict(widen_factor=1.5, in_channels=1, out_indices=(0, 3)),
        (1, 32, 32),
        [(36, 16, 16), (480, 2, 2), (1920, 2, 2)],
    ),
    ('CIFARMobileNetV2', dict(widen_factor=0.25), (3, 32, 32), [(1280, 2, 2)]),
    *(  # The fourth pooling at a height of 64 alone.
        (
            'CIFARVGG',
            dict(depth=8, out_indices=(0, 1, 2, 3)),
            (3, h, h),
            [
                (128, h // 2, h // 2),
                (256, h // 4, h // 4),
                (512, h // 8, h // 8),
                (512, last, last),
            ],
        )
        for h, last in ((32, 4), (48, 6), (64, 4))
    ),
    (
        'CIFARFourStageResNet',
        dict(depth=10, out_indices=(0, 1, 2, 3)),
        (3, 16, 16),
        [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)],
    ),
    (
        'PlainConvNet',
        dict(out_indices=(1, 2, 3, 4)),
        (1, 48, 64),
        [(128, 12, 16), (256, 6, 8), (512, 3, 4), (512, 3, 4)],
    ),
]
CASES = [
    ('CIFARResNet', dict(depth=10), r'depth must be 6 n \+ 2 .* but got 10'),
    ('CIFARResNet', dict(depth='8'), "but got '8'"),
    ('CIFARResNet', dict(RESNET, base_channels=0), 'base_channels is 0, expected at least 1'),
    ('CIFARResNet', dict(RESNET, out_indices=(3,)), r'out_indices .* but got \(3,\)'),
    ('CIFARResNet', dict(RESNET, out_indices=()), r'out_indices .* but got \(\)'),
    ('CIFARResNet', dict(RESNET, out_indices=2), 'out_indices must be .* but got 2'),
    ('CIFARResNet', dict(RESNET, out_indices='2'), "out_indices must be .* but got '2'"),
    ('CIFARResNet', dict(RESNET, out_indices=(1, 0)), 'ascending'),
    ('CIFARWideResNet', dict(depth=14), r'depth must be 6 n \+ 4 .* but got 14'),
    ('CIFARWideResNet', dict(WRN, widen_factor=0), 'widen_factor is 0, expected at least 1'),
    ('CIFARVGG', dict(depth=12), r'depth is 12, expected one of \(8, 11, 13, 16, 19\)'),
    ('CIFARMobileNetV2', dict(widen_factor=0), 'widen_factor must be .* but got 0'),
    ('CIFARShuffleNetV1', dict(groups=4), r'groups is 4, expected one of \(2, 3\)'),
    ('CIFARShuffleNetV1', dict(in_channels=0), 'in_channels is 0, expected at least 1'),
    ('CIFARShuffleNetV1', dict(out_indices=()), 'out_indices'),
    ('CIFARShuffleNetV2', dict(widen_factor=3), 'widen_factor is 3, expected one of'),
    ('PlainConvNet', dict(widths=[4, 4], strides=[1]), 'widths has 2 layers and strides 1'),
    ('PlainConvNet', dict(widths=[4, 0], strides=[1, 1]), r'widths\[1\] is 0, expected at least 1'),
    ('PlainConvNet', dict(strides=[1, 1, 0, 1, 1]), r'strides\[2\] is 0'),
    ('HalfAlexNet', dict(input_size=14), '^input_size is 14, expected at least 15 pixels.$'),
    ('PlainConvNet', dict(out_indices=(5,)), r'ascending stages out of \(0, 1, 2, 3, 4\)'),
]


@pytest.mark.parametrize('name, kwargs, image, shapes', SHAPES)
@torch.no_grad()
def test_shapes_that_follow_from_the_arguments(name, kwargs, image, shapes):
    net = getattr(backbones, name)(**kwargs)
    assert [tuple(out.shape[1:]) for out in net(torch.randn(2, *image))] == shapes


@torch.no_grad()
def test_layers_of_a_plain_net():
    net = backbones.PlainConvNet(2, [4, 6], [1, 2], out_indices=[0, 1])
    net.eval()  # mmpretrain's backbones return None here
    x = torch.randn(1, 2, 5, 5)
    maps = net(x)
    net.pre_activation = True
    for layer, given, after, before in zip(net.layers, (x, maps[0]), maps, net(x)):
        convolution, norm, _ = layer
        assert convolution.bias is None
        torch.testing.assert_close(before, norm(convolution(given)))
        torch.testing.assert_close(after, before.relu())


@torch.no_grad()
def test_both_sides_of_the_last_relu_of_vgg():
    net = backbones.CIFARVGG(11, out_indices=(1, 3))
    net.eval()  # mmpretrain's backbones return None here
    image, records = torch.randn(1, 3, 32, 32), {}
    for name in ('block2', 'relu2', 'block4', 'relu4'):
        getattr(net, name).register_forward_hook(
            lambda module, args, out, name=name: records.update({name: out})
        )
    after = net(image)
    assert len(after) == 2
    torch.testing.assert_close(after, (records['relu2'], records['relu4']))
    net.pre_activation = True
    before = net(image)
    torch.testing.assert_close(before, (records['block2'], records['block4'], after[1]))
    torch.testing.assert_close(before[0].relu(), after[0])


@pytest.mark.parametrize('name, kwargs, message', CASES)
def test_arguments_out_of_range(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        getattr(backbones, name)(**kwargs)
