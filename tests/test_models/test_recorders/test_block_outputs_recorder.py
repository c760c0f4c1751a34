"""BlockOutputsRecorder on every kind of backbone."""

import pytest
import torch
from torch import nn

from crd_plugin.registry import TASK_UTILS
from tests.test_models.test_recorders.test_stage_outputs_recorder import (
    Net,
    check_copies,
    net_of,
    record_of,
)

# Blocks of each stage.
NETS = {
    'resnet14': (2, 2, 2),
    'wrn_16_2': (2, 2, 2),
    'vgg8': (1, 1, 1, 1),
    'vgg11': (1, 2, 2, 2),
    'ResNet50': (3, 4, 6, 3),
}


def recorder_of(blocks='all'):
    return TASK_UTILS.build(
        dict(type='crd_plugin.BlockOutputsRecorder', source='backbone', blocks=blocks)
    )


def by_hand(name, net, x):
    """Every block's output, copied before anything could overwrite it."""
    net = net.backbone
    stages = []
    if name.startswith('vgg'):
        x = net.relu(net.block0(x))
        for i in range(1, 5):
            x = net.pool(x) if i < 4 else x
            maps = []
            for layer in [*getattr(net, f'block{i}'), nn.ReLU()]:
                x = layer(x)
                if isinstance(layer, nn.ReLU):
                    maps.append(x.clone())
            stages.append(maps)
        return stages
    x = net.conv1(x)
    prefix = 'block'
    if not name.startswith('wrn'):
        norm = getattr(net, 'norm1', None) or net.bn1
        x, prefix = net.relu(norm(x)), 'layer'
    for i in range(1, 1 + len(NETS[name])):
        stage = getattr(net, f'{prefix}{i}')
        maps = []
        for block in getattr(stage, 'layer', stage):
            x = block(x)
            maps.append(x.clone())
        stages.append(maps)
    return stages


@pytest.mark.parametrize('name', NETS)
def test_blocks_and_stages(name):
    """All blocks by hand; the last of each stage are what the backbone returns."""
    stages = tuple(range(len(NETS[name])))
    net, x = net_of(name, recorder_of(), out_indices=stages), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = by_hand(name, net, x)
    record, output = record_of(net, x)
    assert tuple(len(stage) for stage in record) == NETS[name]
    for stage, maps in zip(record, expected, strict=True):
        assert all(map(torch.equal, stage, maps))
    last, _ = record_of(Net(net.backbone, recorder_of('last')), x)
    assert isinstance(last, tuple) and len(last) == len(stages)
    for one, stage, returned in zip(last, record, output):
        assert torch.equal(one, stage[-1]) and torch.equal(one, returned)


@pytest.mark.parametrize('name', ['resnet14', 'wrn_16_2', 'vgg11'])
def test_pre_activation_changes_nothing(name):
    x = torch.randn(2, 3, 32, 32)
    plain, _ = record_of(net_of(name, recorder_of()), x)
    other, _ = record_of(net_of(name, recorder_of(), pre_activation=True), x)
    for one, two in zip(plain, other, strict=True):
        assert all(map(torch.equal, one, two))


def test_a_block_that_is_not_called():
    net = net_of('ResNet50', recorder_of(), pre_activation=True)
    with pytest.raises(RuntimeError, match='did not call its block layer1.2.*pre_activation=True'):
        record_of(net, torch.randn(1, 3, 32, 32))


def test_blocks_of_a_net_of_ones_own():

    class Own(nn.Sequential):
        block_names = (('0',), ('1',))

    net = Net(Own(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)), recorder_of())
    for _ in range(2):  # Each time, there is one record.
        record, _ = record_of(net, torch.randn(1, 3, 4, 4))
        net(torch.randn(1, 3, 4, 4))
        assert net.recorder._maps == {}
        assert [stage[0].size(1) for stage in record] == [4, 2]


@pytest.mark.parametrize('blocks', ['all', 'last'])
def test_a_copied_model(blocks):
    check_copies(recorder_of(blocks))


@pytest.mark.parametrize('name', ['MobileNetV2', 'ShuffleV1', 'ShuffleV2'])
def test_other_families_are_refused(name):
    with pytest.raises(
        ValueError, match='has no blocks to pair.*refuses MobileNet and ShuffleNet too'
    ):
        net_of(name, recorder_of())


def test_errors():
    with pytest.raises(ValueError, match="blocks is 'first', expected 'all'"):
        recorder_of('first')
    with pytest.raises(ValueError, match="source='trunk' is not a module"):
        type(recorder_of())('trunk').initialize(net_of('vgg8'))
