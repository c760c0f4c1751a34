"""compare_students.py and plot_correlation.py: numbers, figures, errors of random networks."""

import json
import re

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

from crd_plugin.cli import arguments as cli
from crd_plugin.cli import features
from crd_plugin.registry import DATASETS
from tests import tables
from tests.config_files import parsed
from tests.tables import KD


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
                features.load_network(cfg, files[name], role), features.own_data(cfg)[1]
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
    assert 'expected a file that ends in .png, .pdf or .svg' in capsys.readouterr().err


def test_a_network_runs_as_its_config_says(files):
    """Images of the training set without augmentation; the logits are those of the model."""
    cfg = parsed(KD)
    train, val = features.own_data(cfg)
    assert train['type'] == 'crd_plugin.Digits' and train['pipeline'] == val['pipeline']
    assert train['num_train_per_class'] == 10
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


def test_measures_of_known_outputs():
    labels = np.arange(40) % 2
    logits = np.stack([labels == 0, labels == 1], 1).astype(float)
    outputs = features.Outputs(logits, logits, labels)
    assert outputs.top1 == 100 and features.linear_probe(outputs, outputs) == 100
    assert features.class_correlation(outputs) == pytest.approx(np.array([[1, -1], [-1, 1]]))
    assert features.Outputs(logits, logits, 1 - labels).top1 == 0


@pytest.mark.parametrize(
    'config, words, message',
    [
        (KD, ['kd_seed0', 'wide_seed0'], 'epoch_2.pth is not of the architecture of the config'),
        (KD, ['kd_seed0', 'kd_seed0'], 'two CHECKPOINTs are kd with seed 0'),
        (KD, ['missing'], 'CHECKPOINT missing does not exist'),
        (tables.STUDENT, ['kd_seed0'], 'has no model.teacher_ckpt; give the config of a distil'),
    ],
)
def test_wrong_arguments_end_with_one_line(tool, files, tmp_path, capsys, config, words, message):
    args = [str(config), *(files.get(word, word) for word in words), '--out', str(tmp_path)]
    if config == KD:
        args += ['--cfg-options', f'model.teacher_ckpt={files["teacher"]}']
    assert cli.run(tool.main, args) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if 'error' in line]
    assert message in line
