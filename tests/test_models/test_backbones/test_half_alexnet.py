"""HalfAlexNet: layers, sizes, recorders, images of another size."""

import pytest
import torch

from crd_plugin.models import HalfAlexNet
from crd_plugin.models.recorders import StageOutputsRecorder


@pytest.mark.parametrize(
    'size, heights', [(64, (31, 15, 15, 15, 7)), (32, (15, 7, 7, 7, 3)), (15, (7, 3, 3, 3, 1))]
)
@torch.no_grad()
def test_shapes(size, heights):
    net = HalfAlexNet(input_size=size, in_channels=2, out_indices=(0, 1, 2, 3, 4))
    *maps, feature = net(torch.randn(2, 2, size, size))
    widths = (48, 96, 192, 192, 96)
    assert [tuple(x.shape) for x in maps] == [(2, c, h, h) for c, h in zip(widths, heights)]
    assert feature.shape == (2, 2048)


def test_layers_are_halves_of_an_alexnets():
    """Counted by hand: convolutions without bias, batch norm, two fully connected layers."""
    with torch.device('meta'):
        net = HalfAlexNet(in_channels=2)
    widths = (2, 48, 96, 192, 192, 96)
    convolutions = sum(9 * a * b + 2 * b for a, b in zip(widths, widths[1:]))
    linear = (96 * 7 * 7 + 1) * 2048 + (2048 + 1) * 2048 + 2 * 2 * 2048
    assert sum(p.numel() for p in net.parameters()) == convolutions + linear


@torch.no_grad()
def test_stages_are_those_of_the_layers():
    net = HalfAlexNet(input_size=15, in_channels=1, out_indices=(1, 2))
    recorder, records = StageOutputsRecorder('backbone'), {}
    recorder.initialize(torch.nn.ModuleDict(dict(backbone=net)))
    for name in ('conv2', 'conv3', 'fc7'):
        getattr(net, name).register_forward_hook(
            lambda module, args, out, name=name: records.update({name: out.clone()})
        )
    images = torch.randn(3, 1, 15, 15)
    with recorder:
        *stages, feature = net(images)
    assert recorder.data_buffer == [tuple(stages)]
    pooled = torch.nn.functional.max_pool2d(records['conv2'].relu(), 3, 2)
    torch.testing.assert_close(stages, [pooled, records['conv3'].relu()])
    torch.testing.assert_close(feature, records['fc7'])
    assert feature.min() == 0  # behind its ReLU
    net.pre_activation = True
    torch.testing.assert_close(net(images)[:2], (records['conv2'], records['conv3']))


def test_images_of_another_size():
    with pytest.raises(ValueError, match='input_size is 15, but .* 864 numbers, expected 96;'):
        HalfAlexNet(input_size=15)(torch.zeros(2, 3, 32, 32))
