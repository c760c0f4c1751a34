"""StageOutputsRecorder on every kind of backbone."""

import copy
import pickle

import pytest
import torch
from mmrazor.models.task_modules import RecorderManager
from torch import nn

from crd_plugin.models.backbones import CIFAR_ZOO, build_cifar_classifier_cfg
from crd_plugin.models.recorders import StageOutputsRecorder
from crd_plugin.registry import MODELS

# A small one of each family, and the channels of its stem.
NETS = {
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
    """A backbone of the zoo in eval mode."""
    torch.manual_seed(0)
    cfg = build_cifar_classifier_cfg(name, 10, **kwargs)['backbone']
    return Net(MODELS.build(cfg), recorder).eval()


def record_of(net, x):
    """The record of one call, and what the backbone returned."""
    with net.recorder, torch.no_grad():
        output = net(x)
    (record,) = net.recorder.data_buffer
    return record, output


def check_copies(recorder):
    """A copied or unpickled model records into its own recorder."""
    net, x = net_of('resnet8', recorder, out_indices=(0, 1, 2)), torch.randn(1, 3, 32, 32)
    expected, _ = record_of(net, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.recorder is not recorder
        net.recorder.reset_data_buffer()
        record, _ = record_of(other, x)
        assert net.recorder.data_buffer == []
        torch.testing.assert_close(record, expected, rtol=0, atol=0)


@pytest.mark.parametrize('pre_activation', [False, True])
@pytest.mark.parametrize('name', NETS)
def test_one_map_per_stage(name, pre_activation):
    stages = (0, 1, 2, 3) if name in ('vgg8', 'ResNet50', 'MobileNetV2') else (0, 1, 2)
    recorder = StageOutputsRecorder('backbone', stem=True)
    net = net_of(name, recorder, out_indices=stages, pre_activation=pre_activation)
    record, output = record_of(net, torch.randn(1, 3, 32, 32))
    assert isinstance(record, tuple) and len(record) == 1 + len(stages)
    stem, *maps = record
    assert stem.size(1) == NETS[name]
    for ours, theirs in zip(maps, output):
        assert ours is theirs
    width = CIFAR_ZOO[name]['in_channels']
    # The last stage is not the map that the head reads.
    assert (maps[-1].size(1) != width) is (name in ('MobileNetV2', 'ShuffleV2'))
    assert torch.equal(recorder.get_record_data(data_idx=-1), maps[-1])


def test_without_stem_and_fewer_stages_in_a_distillers_manager():
    manager = RecorderManager(dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')))
    net = net_of('wrn_16_1', out_indices=(1,))
    manager.initialize(net)
    with manager, torch.no_grad():
        output = net(torch.randn(1, 3, 32, 32))
    record = manager.get_recorder('stages').get_record_data()
    assert len(record) == 1 and len(output) == 2
    assert record[0] is output[0]


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


def test_a_copied_model():
    check_copies(StageOutputsRecorder('backbone', stem=True))


def test_errors():
    net = net_of('resnet8')
    with pytest.raises(ValueError, match="source='trunk' is not a module"):
        StageOutputsRecorder('trunk').initialize(net)
    with pytest.raises(ValueError, match='attribute stem_name'):
        Net(nn.Conv2d(3, 4, 1), StageOutputsRecorder('backbone', stem=True))
    with pytest.raises(TypeError, match='Conv2d returns Tensor'):
        record_of(
            Net(nn.Conv2d(3, 4, 1), StageOutputsRecorder('backbone')), torch.zeros(1, 3, 8, 8)
        )
