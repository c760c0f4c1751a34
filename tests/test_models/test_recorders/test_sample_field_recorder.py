"""SampleFieldRecorder, alone and in a distiller."""

import pytest
import torch
from mmpretrain.structures import DataSample
from mmrazor.models.task_modules import RecorderManager
from torch import nn

from crd_plugin.models.recorders import SampleFieldRecorder
from crd_plugin.models.recorders.sample_field_recorder import stack_field


class Net(nn.Module):
    """Takes the arguments of a model of MMEngine."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return inputs


def _samples(count=3):
    samples = []
    for i in range(count):
        sample = DataSample().set_gt_label(i + 1)
        sample.set_metainfo(dict(sample_idx=10 * i))
        sample.set_field(torch.arange(4) + i, 'contrast_idx')
        samples.append(sample)
    return samples


def _recorded(source, call):
    net, recorder = Net(), SampleFieldRecorder(source)
    recorder.initialize(net)
    with recorder:
        call(net)
    return recorder


@pytest.mark.parametrize(
    'source, expected',
    [
        ('sample_idx', [0, 10, 20]),
        ('gt_label', [1, 2, 3]),
        ('contrast_idx', [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]),
    ],
)
def test_fields_are_stacked(source, expected):
    images, views = torch.zeros(3, 1), [torch.zeros(3, 1), torch.zeros(3, 1)]
    for call in (
        lambda net: net(images, _samples(), 'loss'),
        lambda net: net(inputs=views, data_samples=_samples(), mode='loss'),
    ):
        record = _recorded(source, call).get_record_data()
        assert record.dtype == torch.int64 and record.device == images.device
        assert record.tolist() == expected


@pytest.mark.cuda
def test_record_is_on_the_device_of_the_images():
    images = torch.zeros(3, 1, device='cuda')
    for source in ('sample_idx', 'gt_label'):
        recorder = _recorded(source, lambda net: net(images, _samples()))
        assert recorder.get_record_data().device == images.device


def test_each_entry_starts_empty_and_nothing_is_kept_outside():
    net = Net()
    manager = RecorderManager(dict(ids=dict(type='crd_plugin.SampleField', source='sample_idx')))
    manager.initialize(net)
    recorder = manager.get_recorder('ids')
    images = torch.zeros(1)
    net(images, _samples())
    assert recorder.data_buffer == []
    for count in (3, 2):
        with recorder:
            net(images)  # Without samples, as when widths are inferred.
            net(images, _samples(count))
        net(images, _samples(1))
        assert [len(record) for record in recorder.data_buffer] == [count]


@pytest.mark.parametrize(
    'field, advice',
    [
        ('sample_idx', 'wrap the training data set in crd_plugin.SampleIndexDataset'),
        ('contrast_idx', 'crd_plugin.SampleIndexDataset'),
        ('gt_score', "give PackInputs algorithm_keys=.'gt_score',"),
    ],
)
def test_missing_field(field, advice):
    samples = [*_samples(1), DataSample()]
    with pytest.raises(ValueError, match=f'have no field "{field}".*{advice}'):
        stack_field(samples, field, torch.device('cpu'))


@pytest.mark.parametrize(
    'labels', [[None, None], [1, None], [[0, 1], [2]], [[0, 1], [2, 0]]], ids=str
)
def test_labels_that_are_not_one_per_sample(labels):
    """Losses that need no labels train; what needs them is given None."""
    samples = [
        DataSample() if label is None else DataSample().set_gt_label(label) for label in labels
    ]
    recorder = _recorded('gt_label', lambda net: net(torch.zeros(2, 1), samples, 'loss'))
    assert recorder.data_buffer == [None]


def test_large_ids_keep_their_bits():
    samples = [DataSample(metainfo=dict(sample_idx=2**53 + i)) for i in range(3)]
    ids = stack_field(samples, 'sample_idx', torch.device('cpu'))
    assert ids.tolist() == [2**53, 2**53 + 1, 2**53 + 2]
