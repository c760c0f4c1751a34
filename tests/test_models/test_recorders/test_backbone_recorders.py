"""StageOutputsRecorder and BlockOutputsRecorder on every kind of backbone."""

import pytest
import torch
from torch import nn

from crd_plugin.models.backbones import CIFAR_ZOO, build_cifar_classifier_cfg
from crd_plugin.models.recorders import StageOutputsRecorder
from crd_plugin.registry import MODELS, TASK_UTILS

# A small one of each family, and the channels of its stem.
FAMILIES = {
    'resnet8': 16,
    'wrn_16_1': 16,
    'vgg8': 64,
    'ResNet50': 64,
    'MobileNetV2': 16,
    'ShuffleV1': 24,
    'ShuffleV2': 24,
}


class Net(nn.Module):
    """A backbone under its usual name, and a recorder if wanted."""

    def __init__(self, backbone, recorder=None):
        super().__init__()
        self.backbone = backbone
        self.recorder = recorder
        if recorder is not None:
            recorder.initialize(self)

    def forward(self, x):
        return self.backbone(x)


def net_of(name, recorder=None, **kwargs):
    torch.manual_seed(0)
    cfg = build_cifar_classifier_cfg(name, 10, **kwargs)['backbone']
    return Net(MODELS.build(cfg), recorder).eval()


def record_of(net, x):
    with net.recorder, torch.no_grad():
        output = net(x)
    (record,) = net.recorder.data_buffer
    return record, output


@pytest.mark.parametrize('pre_activation', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
def test_one_map_per_stage(name, pre_activation):
    stages = (0, 1, 2, 3) if name in ('vgg8', 'ResNet50', 'MobileNetV2') else (0, 1, 2)
    recorder = StageOutputsRecorder('backbone', stem=True)
    net = net_of(name, recorder, out_indices=stages, pre_activation=pre_activation)
    record, output = record_of(net, torch.randn(1, 3, 32, 32))
    assert isinstance(record, tuple) and len(record) == 1 + len(stages)
    stem, *maps = record
    assert stem.size(1) == FAMILIES[name]
    for ours, theirs in zip(maps, output):
        assert ours is theirs
    width = CIFAR_ZOO[name]['in_channels']
    # The last stage is not the map that the head reads.
    assert (maps[-1].size(1) != width) is (name in ('MobileNetV2', 'ShuffleV2'))
    net.backbone.out_indices = stages[1:]
    plain = Net(net.backbone, StageOutputsRecorder('backbone')).eval()
    assert len(record_of(plain, torch.randn(1, 3, 32, 32))[0]) == len(stages) - 1


def test_each_call_is_a_record():
    recorder = StageOutputsRecorder('backbone', stem=True)
    net = net_of('resnet8', recorder, out_indices=(0, 1, 2))
    x, y = torch.randn(2, 1, 3, 32, 32)
    with recorder, torch.no_grad():
        net(x), net(y)
    assert [len(record) for record in recorder.data_buffer] == [4, 4]
    with torch.no_grad():
        net(x)  # Not recorded.
    record, _ = record_of(net, y)
    with torch.no_grad():
        stem = net.backbone.relu(net.backbone.bn1(net.backbone.conv1(y)))
    assert torch.equal(record[0], stem)


def test_errors_of_stages():
    net = net_of('resnet8')
    with pytest.raises(ValueError, match="source='trunk' is not a module"):
        StageOutputsRecorder('trunk').initialize(net)
    with pytest.raises(ValueError, match='attribute stem_name'):
        Net(nn.Conv2d(3, 4, 1), StageOutputsRecorder('backbone', stem=True))
    with pytest.raises(TypeError, match='Conv2d returns Tensor'):
        record_of(
            Net(nn.Conv2d(3, 4, 1), StageOutputsRecorder('backbone')), torch.zeros(1, 3, 8, 8)
        )


# Blocks of each stage.
BLOCKS = {
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
    for i in range(1, 1 + len(BLOCKS[name])):
        stage = getattr(net, f'{prefix}{i}')
        maps = []
        for block in getattr(stage, 'layer', stage):
            x = block(x)
            maps.append(x.clone())
        stages.append(maps)
    return stages


@pytest.mark.parametrize('name', BLOCKS)
def test_blocks_and_stages(name):
    """All blocks by hand; the last of each stage are what the backbone returns."""
    stages = tuple(range(len(BLOCKS[name])))
    net, x = net_of(name, recorder_of(), out_indices=stages), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = by_hand(name, net, x)
    record, output = record_of(net, x)
    assert tuple(len(stage) for stage in record) == BLOCKS[name]
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


@pytest.mark.parametrize('name', ['MobileNetV2', 'ShuffleV1', 'ShuffleV2'])
def test_other_families_are_refused(name):
    with pytest.raises(
        ValueError, match='has no blocks to pair.*refuses MobileNet and ShuffleNet too'
    ):
        net_of(name, recorder_of())


def test_errors_of_blocks():
    with pytest.raises(ValueError, match="blocks is 'first', expected one of"):
        recorder_of('first')
