"""tools/mmpretrain_tool.py: MMPretrain's own tools on a distillation of digits."""

import json
import re
import sys
from unittest import mock

import cv2
import matplotlib
import mmpretrain
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.utils import digit_version
from mmpretrain.registry import MODELS

from crd_plugin.cli import arguments as cli
from crd_plugin.compat.mmpretrain_tools import REPAIRS, scripts
from tests import small_runs, tables

CRD = str(small_runs.REPO / 'configs/crd/crd_resnet14_resnet8w4_b20-100e_digits.py')
ONEDL = digit_version(mmpretrain.__version__) > digit_version('1.2.0')
ALONE = str(small_runs.REPO / 'configs/vanilla/vanilla_resnet8w4_b20-100e_digits.py')


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A distillation that needs no teacher."""
    path = tmp_path_factory.mktemp('config') / 'crd_digits.py'
    path.write_text(f'_base_ = {CRD!r}\nmodel = dict(teacher_ckpt=None)\n')
    return str(path)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a tool in an empty folder; return what it printed."""
    matplotlib.use('agg')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['mmpretrain_tool.py'])
    tool = tables.load_tool('mmpretrain_tool.py')

    def call(*words):
        assert cli.run(tool.main, list(words)) == 0
        return capsys.readouterr().out

    return call


@pytest.fixture(scope='module')
def checkpoint(config, tmp_path_factory):
    """The weights before training."""
    init_default_scope('mmpretrain')
    model = Config.fromfile(config).model
    path = tmp_path_factory.mktemp('run') / 'epoch_1.pth'
    torch.save(dict(state_dict=MODELS.build(model).state_dict()), path)
    return str(path)


def test_repairs_change_the_installed_scripts():
    """A repair that finds nothing to change can go."""
    for name, changes in REPAIRS.items():
        if name != 'browse_dataset' and ONEDL:
            continue  # repaired there
        text = scripts()[name].read_text()
        assert all(text.count(broken) == 1 for broken in changes), name


@pytest.mark.parametrize('argv', [['browse'], []])
def test_tools_are_listed_for_a_wrong_name(capsys, argv):
    with pytest.raises(SystemExit, match='2'):
        cli.run(tables.load_tool('mmpretrain_tool.py').main, argv)
    assert ('browse_dataset' if argv else 'TOOL') in capsys.readouterr().err


def test_config_and_size_of_the_student(run, config):
    printed = run('print_config', config, '--cfg-options', 'train_cfg.max_epochs=7')
    assert 'max_epochs=7' in printed and "type='crd_plugin.CRDLoss'" in printed
    assert 'Params: 5.514K' in run('get_flops', ALONE, '--shape', '16', '16')
    # The operations are those of the student in either config.
    assert 'Flops: 0.305M' in run('get_flops', config, '--shape', '16', '16')


def test_images_and_schedule(run, config, tmp_path):
    run('browse_dataset', config, '-n', '2', '--mode', 'pipeline', '--not-show', '-o', 'browse')
    assert {path.name for path in (tmp_path / 'browse').iterdir()} == {'0.jpg', '1.jpg'}
    run('vis_scheduler', config, '--not-show', '--save-path', 'lr.png')
    assert (tmp_path / 'lr.png').stat().st_size > 5000


def test_curves(run, tmp_path):
    rows = [dict(step=step, epoch=step, mi_bound=step / 2) for step in range(1, 4)]
    (tmp_path / 'scalars.json').write_text('\n'.join(map(json.dumps, rows)))
    run('analyze_logs', 'plot_curve', 'scalars.json', '--keys', 'mi_bound', '--out', 'curve.png')
    assert (tmp_path / 'curve.png').stat().st_size > 5000


def test_confusion_matrix(run, config, checkpoint):
    run('confusion_matrix', config, checkpoint, '--out', 'matrix.pkl', '--show-path', 'matrix.png')
    matrix = np.load('matrix.pkl', allow_pickle=True)
    assert np.asarray(matrix).sum(1).tolist() == [100] * 10


def test_features(run, config, checkpoint, tmp_path):
    words = '--work-dir tsne --max-num-samples 10 --n-iter 250'.split()
    run('vis_tsne', config, '--checkpoint', checkpoint, *words)
    paths = sorted(tmp_path.glob('tsne/tsne_*/*.npy'))
    assert [np.load(path).shape for path in paths] == [(100, 4), (100, 8), (100, 16)]
    assert all(path.with_suffix('.png').exists() for path in paths)


def test_where_the_student_looks(run, config, checkpoint, tmp_path, monkeypatch):
    """With the interface of grad-cam 1.5.7, which is not among the requirements."""
    seen, hooks = {}, mock.MagicMock()

    class BaseCAM:
        def __init__(self, model, target_layers, reshape_transform=None):
            self.model, self.target_layers = model, target_layers
            self.activations_and_grads = hooks

        def __call__(self, inputs, targets, eigen_smooth, aug_smooth):
            seen.update(scores=self.model(inputs), targets=targets)
            return np.zeros((1, 16, 16), np.float32)

    class GradCAM(BaseCAM):
        pass

    package = mock.MagicMock(ClassifierOutputTarget=int, **{'base_cam.BaseCAM': BaseCAM})
    package.show_cam_on_image = lambda image, cam, use_rgb: np.uint8(255 * image)
    parts = ('', '.activations_and_gradients', '.utils', '.utils.image', '.utils.model_targets')
    for name in parts:
        monkeypatch.setitem(sys.modules, f'pytorch_grad_cam{name}', package)
    monkeypatch.setattr('importlib.metadata.version', lambda name: '1.5.7')

    cv2.imwrite('three.png', np.full((8, 8, 3), 90, np.uint8))
    page = (small_runs.REPO / 'docs' / 'tools.md').read_text()
    shown = re.search(r'```python\n(.*?)```', page, re.DOTALL)[1]
    leaf = re.sub("'crd_plugin::.*?'", repr(config), shown)
    (tmp_path / 'cam.py').write_text(leaf)
    words = '--target-category 3 --save-path cam.png'.split()
    run('vis_cam', 'three.png', 'cam.py', checkpoint, *words)
    assert seen['scores'].shape == (1, 10) and seen['targets'] == [3]
    hooks.release.assert_called_once_with()
    assert cv2.imread('cam.png').shape == (16, 16, 3)


@pytest.mark.parametrize('name', ['tensorboard', 'wandb'])
def test_visualization_of_a_run(name, tmp_path):
    """The backend stands behind the local one, and MMEngine has it."""
    from mmengine.registry import VISBACKENDS

    bases = [CRD, str(small_runs.REPO / f'configs/_base_/visualization/{name}.py')]
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f'_base_ = {bases}\nvisualizer = dict(vis_backends=[*_base_.vis_backends, _base_.{name}])\n'
    )
    local, other = Config.fromfile(leaf).visualizer.vis_backends
    assert local == dict(type='LocalVisBackend')
    settings = {key: value for key, value in other.items() if key != 'type'}
    assert VISBACKENDS.get(other.type)(save_dir=str(tmp_path), **settings) is not None
