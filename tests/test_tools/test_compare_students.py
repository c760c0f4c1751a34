"""compare_students.py and plot_correlation.py: numbers, figures, errors of random networks."""

import json
import re

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from mmengine.registry import DefaultScope
from PIL import Image

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import features
from crd_plugin.datasets import _checks
from crd_plugin.datasets.sample_index import find_sources
from crd_plugin.registry import DATASETS
from tests import tables
from tests.config_files import parsed
from tests.tables import KD

ENSEMBLE = tables.CONFIGS / 'ensemble' / 'crd-ensemble_2xresnet14_resnet8w4_b20-100e_digits.py'


@pytest.fixture(scope='module')
def tool():
    return tables.load_tool('analysis_tools/compare_students.py')


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch):
    monkeypatch.setattr(features, 'get_device', lambda: 'cpu')


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Checkpoints of a teacher and of students as they are saved: distilled, alone, published."""
    kinds = {
        'teacher': 'teacher',
        'kd_seed0': 'distilled',
        'kd_seed1': 'distilled',
        'vanilla_seed0': 'student',
        'crd/seed_1': 'published',
        'wide_seed0': 'teacher',
    }
    return tables.save_networks(tmp_path_factory.mktemp('files'), kinds)


@pytest.mark.slow
def test_numbers_table_and_figures(tool, files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'EMBEDDED', 40)
    options = ['--cfg-options', f'model.teacher_ckpt={files["teacher"]}']
    students = [files[name] for name in ('vanilla_seed0', 'kd_seed0', 'kd_seed1', 'crd/seed_1')]
    assert cli.run(tool.main, [str(KD), *students, '--out', str(tmp_path), *options]) == 0
    out, progress = capsys.readouterr()
    assert progress.count('seed') >= 5
    rows = json.loads((tmp_path / 'results.json').read_text())
    names = [('teacher', 0), ('vanilla', 0), ('kd', 0), ('kd', 1), ('crd', 1)]
    assert [(row['name'], row['seed']) for row in rows] == names
    first, second = rows[:2]
    assert first['correlation_difference'] == 0
    expected = np.abs(np.array(first['correlation']) - second['correlation']).mean()
    assert second['correlation_difference'] == pytest.approx(expected) and expected > 0
    for row in rows:
        # Guessing is 10 %; a classifier on random features of digits is much better.
        assert row['top1'] < 25 < row['probe'] and row['probe_digits'] > 25
    probes = np.array([row['probe'] for row in rows[2:4]])
    mean, std = probes.mean(), probes.std(ddof=1)
    assert re.search(rf'\| kd +\| +2 \|.*\| +{mean:.2f} ± {std:.2f} \|', out)
    assert 'linear probe - vanilla' in out and 'paired by seed' in out
    for name in ('correlation.png', 'embedding.png'):
        with Image.open(tmp_path / name) as image:
            assert image.width > 3 * image.height  # four panels in a row


def test_correlation_alone(files, tmp_path, capsys):
    """The figure and its numbers; the names are those of the folders."""
    tool = tables.load_tool('analysis_tools/plot_correlation.py')
    words = [files['vanilla_seed0'], files['kd_seed1'], '--out', str(tmp_path / 'new/figure.png')]
    words += ['--cfg-options', f'model.teacher_ckpt={files["teacher"]}']
    assert cli.run(tool.main, [str(KD), *words]) == 0
    rows = json.loads((tmp_path / 'new/figure.json').read_text())
    assert [row['name'] for row in rows] == ['teacher', 'vanilla, seed 0', 'kd, seed 1']
    cfg = parsed(KD)
    teacher, student = (
        np.corrcoef(
            features.run_network(
                features.load_network(cfg, files[name], role), features.own_data(cfg)
            ).logits.T
        )
        for name, role in (('teacher', 'teacher'), ('kd_seed1', 'architecture'))
    )
    np.testing.assert_allclose(rows[2]['difference'], teacher - student, atol=1e-5)
    assert rows[0]['mean_absolute'] == 0
    assert rows[2]['mean_absolute'] == pytest.approx(np.abs(teacher - student).mean())
    assert f'kd, seed 1: {rows[2]["mean_absolute"]:.3f}' in capsys.readouterr().out
    with Image.open(tmp_path / 'new/figure.png') as image:
        assert image.width > 2 * image.height  # three panels in a row
    words[3] = str(tmp_path)
    assert cli.run(tool.main, [str(KD), *words]) == 1
    assert 'is a folder, expected a file' in capsys.readouterr().err


def test_a_network_runs_as_its_config_says(files):
    """The logits are those of the model."""
    cfg = parsed(KD)
    val = cfg.val_dataloader.dataset.to_dict()
    network = features.load_network(cfg, files['kd_seed0'])
    outputs = features.run_network(network, dict(val, indices=7))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        dataset = DATASETS.build(dict(val, indices=7))
    batch = [dataset[index] for index in range(7)]
    data = network.data_preprocessor(
        dict(
            inputs=[item['inputs'] for item in batch],
            data_samples=[item['data_samples'] for item in batch],
        )
    )
    found = network(**data, mode='predict')
    assert outputs.labels.tolist() == [int(sample.gt_label) for sample in found]
    scores = torch.from_numpy(outputs.logits).softmax(1)
    torch.testing.assert_close(scores, torch.stack([sample.pred_score for sample in found]))
    assert outputs.features.shape == (7, 16)
    # The teacher inside the checkpoint of a distillation is the teacher.
    for name in ('teacher', 'kd_seed1'):
        teacher = features.load_network(cfg, files[name], 'teacher')
        assert teacher.backbone.depth == 14


@pytest.mark.parametrize('resident', [False, True])
def test_images_are_those_that_the_config_selects(resident, monkeypatch):
    """Of a fold, of joined and repeated sets, without augmentation."""
    cfg = parsed(KD)
    val, ids = cfg.val_dataloader.dataset, cfg.train_dataloader.dataset
    part = dict(ids.dataset, num_train_per_class=2)
    fold = dict(type='KFoldDataset', num_splits=5, fold=1, dataset=part)
    ids.dataset = dict(type='ConcatDataset', datasets=[fold, part])
    if resident:
        ids.type = 'crd_plugin.ResidentDataset'
    cfg.val_dataloader.dataset = dict(fold, dataset=dict(val, indices=50), test_mode=True)
    train, held = features.own_data(cfg, training=True), features.own_data(cfg)
    assert (len(train), len(held)) == (16 + 20, 10)
    sizes = {len(find_sources(data).owners[0].pipeline.transforms) for data in (train, held)}
    assert sizes == {len(val.pipeline)}
    first, again = train[0]['inputs'], train[0]['inputs']
    assert torch.equal(first, again)
    # Copies inside a repetition share their ids.
    inner = dict(type='crd_plugin.SampleIndexDataset', dataset=part)
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    assert len(features.own_data(cfg, training=True)) == 40
    cfg.val_dataloader.dataset = val
    cfg.train_dataloader.dataset.dataset.complete = True
    monkeypatch.setitem(_checks._IMAGES, 'Digits', dict(test=1001))
    message = '^val_dataloader.dataset: The test set of Digits .* has 1,000 images'
    with pytest.raises(cli.UsageError, match=message):
        features.own_data(cfg)
    cfg.val_dataloader = None
    with pytest.raises(cli.UsageError, match='the config has no val_dataloader'):
        features.own_data(cfg)


@pytest.mark.parametrize('classes', [10, 100])
def test_images_of_all_classes_in_colours_of_their_own(classes, tmp_path, monkeypatch):
    """Of a set that is sorted by class, as folders of images are."""
    drawn, scatter = [], Axes.scatter

    def record(self, x, y, **more):
        drawn.append((len(x), more['color']))
        return scatter(self, x, y, **more)

    monkeypatch.setattr(Axes, 'scatter', record)
    monkeypatch.setattr('sklearn.manifold.TSNE.fit_transform', lambda self, x: x[:, :2])
    labels = np.repeat(np.arange(classes), 5)
    values = np.stack([labels, labels], 1)
    outputs = features.Outputs(values, values, labels, tuple(map(str, range(classes))))
    features.plot_embedding(dict(a=outputs), tmp_path / 'a.png', 2 * classes)
    (number, colours), *legend = drawn
    assert number == 2 * classes and len({tuple(colour) for colour in colours}) == classes
    assert len(legend) == (10 if classes == 10 else 0)


def test_measures_of_known_outputs():
    labels = np.arange(40) % 2
    logits = np.stack([labels == 0, labels == 1], 1).astype(float)
    outputs = features.Outputs(logits, logits, labels)
    assert outputs.top1 == 100 and features.linear_probe(outputs, outputs) == 100
    assert features.class_correlation(outputs) == pytest.approx(np.array([[1, -1], [-1, 1]]))
    assert features.Outputs(logits, logits, 1 - labels).top1 == 0
    with pytest.raises(cli.UsageError, match='the 40 training images are of one class'):
        features.linear_probe(outputs._replace(labels=0 * labels), outputs)


@pytest.mark.parametrize(
    'config, words, message',
    [
        (KD, ['kd_seed0', 'wide_seed0'], 'epoch_2.pth is not of the architecture of the config'),
        (KD, ['a/net.pth', 'b/net.pth'], 'b/net.pth are both net with seed 0, by the folders of'),
        (KD, ['teacher'], 'would be shown as the teacher'),
        (ENSEMBLE, ['kd_seed0'], 'has a list of 2 in model.teacher_ckpt, expected one file'),
        (KD, ['missing'], 'CHECKPOINT missing does not exist'),
        (tables.STUDENT, ['kd_seed0'], 'has no model.teacher_ckpt; give the config of a distil'),
    ],
)
def test_wrong_arguments_end_with_one_line(
    tool, files, tmp_path, monkeypatch, capsys, config, words, message
):
    monkeypatch.chdir(tmp_path)
    for folder in 'ab':
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'net.pth').touch()
    args = [str(config), *(files.get(word, word) for word in words), '--out', str(tmp_path)]
    if config == KD:
        args += ['--cfg-options', f'model.teacher_ckpt={files["teacher"]}']
    assert cli.run(tool.main, args) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert message in line
