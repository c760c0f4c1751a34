"""Teacher and student see parts of stacked modalities: train, test, publish, run alone."""

import re

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import DefaultScope

from crd_plugin.checkpoints.publish import publish_student
from crd_plugin.cli.dry_run import dry_run_file
from crd_plugin.registry import MODELS, TRANSFORMS
from tests import small_runs
from tests.test_cli.test_arguments import call


@TRANSFORMS.register_module()
class StackDark(BaseTransform):
    """Stand in for a second modality: behind the image comes one of half the brightness."""

    def transform(self, results):
        results['img'] = np.dstack([results['img'], results['img'] // 2])
        return results


STACK = dict(type='crd_plugin.StackDark')


def view(*channels):
    return dict(type='crd_plugin.ChannelView', channels=list(channels))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a config whose pipelines stack six channels; the student sees the last three."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        model = small_runs.model()
        model.update(
            data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'),
            teacher_view=view(0, 1, 2),
            student_view=view(3, 4, 5),
            input_shape=(6, 8, 8),
        )
        model['architecture']['data_preprocessor'].update(mean=[39.0] * 3, std=[41.0] * 3)
        model.update(changes)
        pipeline = [STACK, dict(type='PackInputs')]
        return small_runs.write_config(
            tmp_path / 'two.py',
            tmp_path / 'run',
            model=model,
            train_dataloader__dataset__dataset__pipeline=pipeline,
            val_dataloader__dataset__pipeline=pipeline,
            test_dataloader__dataset__pipeline=pipeline,
            custom_imports=dict(
                imports=['crd_plugin', 'tests.small_runs', 'tests.test_train_views']
            ),
        )

    return write


def test_from_training_to_the_student_alone(write, tmp_path, capsys):
    path = write()
    report = dry_run_file(str(path))
    assert report.problems == []
    seen = {row.network: row for row in report.inputs}
    assert report.images.startswith('4 x 6 x 8 x 8')
    assert seen['student'].images == seen['teacher'].images == '(4, 3, 8, 8)'
    # White of each, normalised by each network's own mean and std.
    assert seen['teacher'].max == pytest.approx((255 - 78) / 81.4)
    assert seen['student'].max == pytest.approx((127 - 39) / 41)

    assert call('train', path) == 0
    checkpoint = tmp_path / 'run' / 'epoch_1.pth'
    trained = small_runs.scalars(tmp_path / 'run')[-1]['accuracy/top1']
    args = ('--out', 'metrics.json', '--out-item', 'metrics')
    assert call('test', path, checkpoint, *args) == 0
    assert f'"accuracy/top1":{trained}' in (tmp_path / 'metrics.json').read_text().replace(' ', '')

    # Alone it has its own images and mean.
    published = small_runs.load(publish_student(checkpoint, tmp_path / 'student.pth'))
    (tmp_path / 'alone.py').write_text(published['meta']['cfg'])
    alone = Config.fromfile(tmp_path / 'alone.py')
    assert 'test_dataloader' not in alone and alone.data_preprocessor.mean == [39.0] * 3
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(dict(alone.model, data_preprocessor=alone.data_preprocessor)).eval()
        both = MODELS.build(Config.fromfile(path).model).eval()
    model.load_state_dict(published['state_dict'])
    both.load_state_dict(small_runs.load(checkpoint)['state_dict'], strict=False)
    images = torch.randint(0, 256, (3, 6, 8, 8), dtype=torch.uint8)
    scores = [
        torch.stack([sample.pred_score for sample in net.test_step(dict(inputs=given))])
        for net, given in ((model, images[:, 3:]), (both, images))
    ]
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize(
    'changes, message',
    [
        (
            dict(student_view=view(5, 6)),
            r'model.student_view: ChannelView asks for channels \[5, 6\], but the images have 6, '
            'numbered from 0; correct channels',
        ),
        (
            dict(teacher_view=dict(type='crd_plugin.ChannelVeiw', channels=[0])),
            "model.teacher_view.type: 'crd_plugin.ChannelVeiw' is not registered.*ChannelView",
        ),
        (
            dict(teacher_view=dict(type='crd_plugin.ChannelView', channel=[0])),
            'model.teacher_view: .*channel.*the nearest is channels',
        ),
    ],
)
def test_bad_views_are_told_before_training(write, capsys, changes, message):
    path = write(**changes)
    assert call('train', path) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f'error: {message}', line), line
