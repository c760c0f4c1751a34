"""BlockOutputsRecorder on every kind of backbone."""

import pytest
import torch
from mmpretrain.models.backbones import ResNet_CIFAR
from mmrazor.models.task_modules import RecorderManager
from torch import nn

from crd_plugin.models.backbones import build_cifar_classifier_cfg
from crd_plugin.models.recorders import BlockOutputsRecorder
from crd_plugin.registry import MODELS
from tests.test_models.test_recorders.test_stage_outputs_recorder import Net

# Blocks of each stage.
NETS = {
    'resnet14': (2, 2, 2),
    'wrn_16_2': (2, 2, 2),
    'vgg8': (1, 1, 1, 1),
    'vgg11': (1, 2, 2, 2),
    'ResNet50': (3, 4, 6, 3),
}


def net_of(name, **kwargs):
    cfg = build_cifar_classifier_cfg(name, 10, **kwargs)['backbone']
    torch.manual_seed(0)
    return Net(MODELS.build(cfg)).eval()


def record_of(net, x, **kwargs):
    recorder = BlockOutputsRecorder('backbone', **kwargs)
    recorder.initialize(net)
    with recorder, torch.no_grad():
        output = net(x)
    (record,) = recorder.data_buffer
    return record, output


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
    else:
        x = net.conv1(x)
        prefix = 'block'
        if not name.startswith('wrn'):
            norm = getattr(net, 'norm1', None) or net.bn1
            x, prefix = net.relu(norm(x)), 'layer'
        for i in range(1, 5):
            stage = getattr(net, f'{prefix}{i}', None)
            if stage is not None:
                maps = []
                for block in getattr(stage, 'layer', stage):
                    x = block(x)
                    maps.append(x.clone())
                stages.append(maps)
    return stages


@pytest.mark.parametrize('name', NETS)
def test_all_blocks(name):
    net, x = net_of(name), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = by_hand(name, net, x)
    record, output = record_of(net, x)
    assert tuple(len(stage) for stage in record) == NETS[name]
    for stage, maps in zip(record, expected, strict=True):
        for one, other in zip(stage, maps, strict=True):
            assert torch.equal(one, other)
    if not name.startswith('wrn'):
        assert torch.equal(record[-1][-1], output[-1])


@pytest.mark.parametrize('name', NETS)
def test_last_blocks_are_the_stages(name):
    stages = tuple(range(len(NETS[name])))
    net = net_of(name, out_indices=stages)
    record, output = record_of(net, torch.randn(2, 3, 32, 32), blocks='last')
    assert isinstance(record, tuple)
    for one, other in zip(record, output):
        assert torch.equal(one, other)
    assert len(record) == len(stages)


@pytest.mark.parametrize('name', ['resnet14', 'wrn_16_2', 'vgg11'])
def test_pre_activation_changes_nothing(name):
    x = torch.randn(2, 3, 32, 32)
    plain, _ = record_of(net_of(name), x)
    other, _ = record_of(net_of(name, pre_activation=True), x)
    for one, two in zip(plain, other, strict=True):
        assert all(map(torch.equal, one, two))


def test_a_block_that_is_passed_over():
    net = net_of('ResNet50', pre_activation=True)
    with pytest.raises(RuntimeError, match='did not call its block layer1.2.*pre_activation=True'):
        record_of(net, torch.randn(1, 3, 32, 32))


def test_any_resnet_of_mmpretrain():
    net = Net(ResNet_CIFAR(18, out_indices=(0, 1, 2, 3))).eval()
    record, output = record_of(net, torch.randn(1, 3, 32, 32))
    assert [len(stage) for stage in record] == [2, 2, 2, 2]
    assert all(torch.equal(stage[-1], x) for stage, x in zip(record, output))


def test_blocks_of_a_net_of_ones_own():

    class Own(nn.Sequential):
        block_names = (('0',), ('1',))

    net = Net(Own(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)))
    record, output = record_of(net, torch.randn(1, 3, 4, 4))
    assert [stage[0].size(1) for stage in record] == [4, 2]


def test_each_call_is_a_record_and_nothing_outside():
    net = net_of('resnet14')
    recorder = BlockOutputsRecorder('backbone')
    recorder.initialize(net)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        net(x)
        assert recorder.data_buffer == [] and recorder._maps == {}
        with recorder:
            net(x), net(x + 1)
    assert len(recorder.data_buffer) == 2
    first, second = recorder.data_buffer
    assert not torch.equal(first[0][0], second[0][0])


def test_gradient_reaches_the_block():
    net = net_of('vgg8')
    recorder = BlockOutputsRecorder('backbone', blocks='last')
    recorder.initialize(net)
    with recorder:
        net(torch.randn(2, 3, 32, 32))
    recorder.get_record_data(data_idx=0).sum().backward()
    assert net.backbone.block1[0].weight.grad.abs().sum() > 0


def test_in_a_distillers_manager():
    manager = RecorderManager(
        dict(blocks=dict(type='crd_plugin.BlockOutputs', source='backbone', blocks='last'))
    )
    net = net_of('resnet14')
    manager.initialize(net)
    with manager, torch.no_grad():
        net(torch.randn(1, 3, 32, 32))
    record = manager.get_recorder('blocks').get_record_data()
    assert [x.size(1) for x in record] == [16, 32, 64]


@pytest.mark.parametrize('name', ['MobileNetV2', 'ShuffleV1', 'ShuffleV2'])
def test_other_families_are_refused(name):
    with pytest.raises(
        ValueError, match='has no blocks to pair.*refuses MobileNet and ShuffleNet too'
    ):
        BlockOutputsRecorder('backbone').initialize(net_of(name))


def test_errors():
    with pytest.raises(ValueError, match="blocks is 'first', expected 'all'"):
        BlockOutputsRecorder('backbone', blocks='first')
    with pytest.raises(ValueError, match="source='trunk' is not a module"):
        BlockOutputsRecorder('trunk').initialize(net_of('vgg8'))
    with pytest.raises(ValueError, match='not a module of the NoneType'):
        BlockOutputsRecorder('backbone').initialize(None)
