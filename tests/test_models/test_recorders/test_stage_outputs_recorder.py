"""StageOutputsRecorder on every kind of backbone."""

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
    """A backbone under its usual name."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, x):
        return self.backbone(x)


def _net(name, **kwargs):
    cfg = build_cifar_classifier_cfg(name, 10, **kwargs)['backbone']
    torch.manual_seed(0)
    backbone = MODELS.build(cfg)
    backbone.eval()
    return Net(backbone)


def _record(net, x, **kwargs):
    recorder = StageOutputsRecorder('backbone', **kwargs)
    recorder.initialize(net)
    with recorder, torch.no_grad():
        output = net(x)
    return recorder, output


@pytest.mark.parametrize('pre_activation', [False, True])
@pytest.mark.parametrize('name', NETS)
def test_one_map_a_stage(name, pre_activation):
    stages = (0, 1, 2, 3) if name in ('vgg8', 'ResNet50', 'MobileNetV2') else (0, 1, 2)
    net = _net(name, out_indices=stages, pre_activation=pre_activation)
    x = torch.randn(1, 3, 32, 32)
    recorder, output = _record(net, x, stem=True)
    record = recorder.get_record_data()
    assert isinstance(record, tuple) and len(record) == 1 + len(stages)
    stem, *maps = record
    assert stem.size(1) == NETS[name]
    for ours, theirs in zip(maps, output):
        assert ours is theirs
    # The stem really is what the first stage is given.
    width = CIFAR_ZOO[name]['in_channels']
    if name in ('MobileNetV2', 'ShuffleV2'):
        assert maps[-1].size(1) != width
    else:
        assert maps[-1].size(1) == width
    assert torch.equal(recorder.get_record_data(data_idx=-1), maps[-1])


def test_without_stem_and_fewer_stages():
    net = _net('wrn_16_1', out_indices=(1,))
    recorder, output = _record(net, torch.randn(1, 3, 32, 32))
    (record,) = recorder.data_buffer
    assert len(record) == 1 and len(output) == 2
    assert record[0] is output[0]


def test_each_call_is_a_record():
    net = _net('resnet8', out_indices=(0, 1, 2))
    recorder = StageOutputsRecorder('backbone', stem=True)
    recorder.initialize(net)
    x, y = torch.randn(2, 1, 3, 32, 32)
    with recorder, torch.no_grad():
        net(x), net(y)
    assert [len(record) for record in recorder.data_buffer] == [4, 4]
    with torch.no_grad():
        net(x)  # Not recorded.
        with recorder:
            net(y)
    assert len(recorder.data_buffer) == 1
    with torch.no_grad():
        stem = net.backbone.relu(net.backbone.bn1(net.backbone.conv1(y)))
    assert torch.equal(recorder.get_record_data(data_idx=0), stem)


def test_in_a_distillers_manager():
    manager = RecorderManager(dict(stages=dict(type='crd_plugin.StageOutputs', source='backbone')))
    net = _net('resnet8', out_indices=(0, 2))
    manager.initialize(net)
    with manager, torch.no_grad():
        net(torch.randn(1, 3, 32, 32))
    record = manager.get_recorder('stages').get_record_data()
    assert [x.size(1) for x in record] == [16, 64]


def test_errors():
    net = _net('resnet8')
    with pytest.raises(ValueError, match="source='trunk' is not a module"):
        StageOutputsRecorder('trunk').initialize(net)
    with pytest.raises(ValueError, match='not a module of the NoneType'):
        StageOutputsRecorder('backbone').initialize(None)
    with pytest.raises(ValueError, match='attribute stem_name'):
        StageOutputsRecorder('backbone', stem=True).initialize(Net(nn.Conv2d(3, 4, 1)))
    with pytest.raises(TypeError, match='Conv2d returns Tensor'):
        _record(Net(nn.Conv2d(3, 4, 1)), torch.zeros(1, 3, 8, 8))
