"""Tests of what a model hub is given."""

import copy
import hashlib
import json
import re
import sys

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmpretrain import ImageClassificationInferencer, get_model
from mmpretrain.registry import DATASETS, MODELS
from PIL import Image
from safetensors.torch import load_file

from crd_plugin.checkpoints import hub
from crd_plugin.compat import load_checkpoint_file
from crd_plugin.fragments import keep_on_device
from tests import fake_data
from tests.config_files import CONFIGS, parsed
from tests.small_runs import config, net, student_of
from tests.test_cli.test_arguments import call

TOOL = 'model_converters/publish_student'
CLASSES = tuple('0123456789')


@pytest.fixture(scope='module')
def folder(checkpoint):
    """What the tool writes."""
    out, metrics = checkpoint.with_name('tiny'), checkpoint.with_name('metrics.json')
    metrics.write_text('{"accuracy/top1": 12.3456, "accuracy/top5": 50.0}')
    assert call(TOOL, checkpoint, out, '--hub', '--metrics', metrics, '--onnx', 8) == 0
    return out


@pytest.fixture(scope='module')
def student(folder):
    (file,) = folder.glob('*.pth')
    return get_model(str(folder / 'config.py'), pretrained=str(file))


def test_files_hold_the_weights_of_the_run(folder, checkpoint, student):
    names = {file.name for file in folder.iterdir()}
    (weights,) = names - {'README.md', 'config.py', 'model.safetensors', 'model.onnx'}
    assert re.fullmatch(r'tiny-[0-9a-f]{8}\.pth', weights)
    expected = load_checkpoint_file(checkpoint)['state_dict']
    safe = load_file(folder / 'model.safetensors')
    assert set(safe) == set(student.state_dict())
    for key, value in student.state_dict().items():
        assert torch.equal(safe[key], value)
        assert torch.equal(value, expected[f'architecture.{key}'])
    assert student._dataset_meta['classes'] == CLASSES


def test_inferencer(folder, student):
    (file,) = folder.glob('*.pth')
    inferencer = ImageClassificationInferencer(str(folder / 'config.py'), pretrained=str(file))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    result = inferencer(image)[0]
    inputs = torch.from_numpy(image).permute(2, 0, 1).float()
    logits = student((inputs[None] - 78.0) / 81.4)
    torch.testing.assert_close(torch.tensor(result['pred_scores']), logits.softmax(1)[0])
    assert result['pred_class'] == CLASSES[logits.argmax()]


@pytest.mark.parametrize('batch_size', [1, 5])
def test_onnx(folder, student, batch_size):
    session = onnxruntime.InferenceSession(str(folder / 'model.onnx'))
    images = torch.randn(batch_size, 3, 8, 8)
    (logits,) = session.run(['logits'], dict(images=images.numpy()))
    torch.testing.assert_close(torch.from_numpy(logits), student(images), rtol=1e-4, atol=1e-5)


def test_onnx_that_computes_something_else_is_not_kept(student, tmp_path):
    class Session(onnxruntime.InferenceSession):
        def run(self, *args):
            return [super().run(*args)[0] + 1e-2]

    path = tmp_path / 'model.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, 'InferenceSession', Session)
        with pytest.raises(ValueError, match='other logits than PyTorch: .* of the largest'):
            hub.export_onnx(student, path, 8)
    assert not path.exists()


def test_card_says_which_images_were_tested():
    loaders = {
        f'{name}_dataloader': dict(
            dataset=dict(type='CustomDataset', data_root=f'/home/me/x/{name}')
        )
        for name in ('train', 'test')
    }
    plain = dict(model=net(6))
    card = hub._card('s-1.pth', plain, loaders, dict(epoch=2), {'accuracy/top1': 1.0})
    (result,) = huggingface_hub.ModelCard(card).data.eval_results
    assert result.dataset_name == 'CustomDataset x/test'
    assert '| data | CustomDataset x/train |' in card and '/home' not in card


def test_card(folder, run):
    """The client of the hub reads its head."""
    text = (folder / 'README.md').read_text()
    data = huggingface_hub.ModelCard(text).data
    assert (data.library_name, data.pipeline_tag) == ('mmpretrain', 'image-classification')
    values = {result.metric_name: result.metric_value for result in data.eval_results}
    assert values == {'accuracy/top1': 12.35, 'accuracy/top5': 50.0}
    assert {result.dataset_name for result in data.eval_results} == {'crd_plugin.Digits'}
    digest = hashlib.sha256((run / 'teacher.pth').read_bytes()).hexdigest()[:16]
    for line in (
        '| student | mmpretrain.TinyNet(dropout=0.2, width=6) |',
        '| method | crd_plugin.CRDLoss (weight 1.0) |',
        f'| teacher | mmpretrain.TinyNet(dropout=0.0, width=12), teacher.pth (sha256 {digest}) |',
        '| epochs | 2 |',
        '| classes | 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 |',
        '| normalisation | mean [78.0, 78.0, 78.0], std [81.4, 81.4, 81.4], grey |',
        '| accuracy/top1 in percent | 12.35 |',
    ):
        assert line in text
    assert str(run) not in text


def test_card_without_accuracy_and_teacher(checkpoint, tmp_path):
    """A student that was trained alone; nothing is said that is not known."""
    cfg = config(tmp_path, model=dict(net(6), _delete_=True))
    weights = student_of(load_checkpoint_file(checkpoint))
    source = tmp_path / 'plain.pth'
    torch.save(dict(meta=dict(cfg=cfg.pretty_text), state_dict=weights), source)
    assert call(TOOL, source, tmp_path / 'out', '--hub') == 0
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert 'model-index' not in text and 'accuracy' not in text and 'teacher' not in text
    assert '| method |' not in text and '| student | mmpretrain.TinyNet(' in text
    assert not (tmp_path / 'out' / 'model.onnx').exists()
    torch.save(weights, source)
    assert call(TOOL, source, tmp_path / 'bare', '--hub') == 1


class Client:
    """Stands in for ``huggingface_hub.HfApi``."""

    calls = []

    def create_repo(self, repo_id, **kwargs):
        self.calls.append((repo_id, kwargs))

    def upload_folder(self, **kwargs):
        self.calls.append(kwargs)
        return 'https://hub/commit/1'


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(huggingface_hub, 'HfApi', Client)
    monkeypatch.setattr(Client, 'calls', [])
    return Client


def test_upload_only_when_asked_for(client, checkpoint, tmp_path, capsys):
    assert call(TOOL, checkpoint, tmp_path / 'a', '--hub') == 0
    assert client.calls == []
    assert call(TOOL, checkpoint, tmp_path / 'b', '--hub', '--upload', 'me/tiny') == 0
    created, upload = client.calls
    assert created == ('me/tiny', dict(exist_ok=True)) and upload['repo_id'] == 'me/tiny'
    assert upload['folder_path'] == tmp_path / 'b'
    names = [file.name for file in (tmp_path / 'b').iterdir()]
    files = huggingface_hub.utils.filter_repo_objects(
        [*names, 'notes.txt'], allow_patterns=upload['allow_patterns']
    )
    assert set(files) == set(names) and len(names) == 4
    assert capsys.readouterr().out.endswith('https://hub/commit/1\n')


def published(tmp_path, cfg, classes, *flags):
    """Publish a student of a config with random weights; return its folder and the network."""
    network, distillation = cfg.model.get('architecture', cfg.model), 'architecture' in cfg.model
    preprocessor = cfg.get('data_preprocessor') or network.data_preprocessor
    without_files = copy.deepcopy({'data_preprocessor': preprocessor, **network})
    without_files.pop('backbone_ckpt', None)  # of another stage, not there when it is published
    model = MODELS.build(without_files).eval()
    prefix = 'architecture.' if distillation else ''
    weights = {f'{prefix}{name}': x for name, x in model.state_dict().items()}
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=classes))
    torch.save(dict(meta=meta, state_dict=weights), tmp_path / 'source.pth')
    assert call(TOOL, tmp_path / 'source.pth', tmp_path / 'alone', '--hub', *flags) == 0
    return tmp_path / 'alone', model


def folder_of_images(to_rgb):
    """A config of a tiny network for colour images in files."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    cfg = config('run', model=dict(net(6), _delete_=True))
    cfg.model.data_preprocessor.to_rgb = to_rgb
    cfg.test_dataloader.dataset = dict(
        type='CustomDataset', data_root='files', with_label=False, pipeline=pipeline
    )
    return cfg


def cifar(resident=False):
    cfg = parsed(CONFIGS / 'vanilla/vanilla_resnet20_b64-240e_cifar100.py')
    if resident:
        keep_on_device(cfg)
    return cfg


def chrominance():
    return parsed(CONFIGS / 'cross-modal/finetune_resnet8-ab_b50-40e_photos-few.py')


@pytest.mark.parametrize(
    'make, channels',
    [
        (cifar, 'RGB'),
        (lambda: cifar(resident=True), 'RGB'),
        (chrominance, "LabView(channels='ab') of RGB"),
        (lambda: folder_of_images(to_rgb=True), 'RGB'),
        (lambda: folder_of_images(to_rgb=False), 'BGR'),
    ],
)
@pytest.mark.usefixtures('mmpretrain_scope')
def test_a_file_is_seen_as_in_training(make, channels, tmp_path, monkeypatch):
    """The inferencer gives a file the scores that its pixels have in the data set."""
    monkeypatch.chdir(tmp_path)
    fake_data.without_md5(monkeypatch)
    fake_data.write_cifar100('data/cifar100')
    fake_data.write_stl10('data/photos')
    (tmp_path / 'files').mkdir()
    pixels = np.random.default_rng(0).integers(0, [256, 128, 20], (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save('files/image.png')
    cfg = make()
    folder, model = published(tmp_path, cfg, CLASSES)
    dataset = cfg.test_dataloader.dataset
    dataset = DATASETS.build(dataset.get('dataset', dataset))
    info, sample = dataset.get_data_info(0), dataset[0]
    if 'img' in info:
        Image.fromarray(info['img']).save('files/image.png')
    card = (folder / 'README.md').read_text()
    code = re.search('```python\n(.*)```', card, re.DOTALL).group(1)
    monkeypatch.chdir(folder)
    scope = {}
    exec(code.replace("'image.png'", f"'{tmp_path}/files/image.png'"), scope)

    def scores(images):
        batch = dict(inputs=images[None], data_samples=[copy.deepcopy(sample['data_samples'])])
        return model.test_step(batch)[0].pred_score

    found = scope['inferencer'](f'{tmp_path}/files/image.png')[0]['pred_scores']
    torch.testing.assert_close(torch.tensor(found), scores(sample['inputs']))
    assert (scores(sample['inputs'].flip(0)) - scores(sample['inputs'])).abs().max() > 1e-4
    assert re.search(rf'normalisation .*\], {re.escape(channels)} \|', card)
    # The test of the published config sees what that of the original does.
    monkeypatch.chdir(tmp_path)
    alone = DATASETS.build(Config.fromfile(folder / 'config.py').test_dataloader.dataset)
    assert torch.equal(alone[0]['inputs'], sample['inputs'])


@pytest.mark.parametrize(
    'leaf, sees, outputs, shape',
    [
        ('transfer/crd_vgg19_vgg8_b64-240e_stl10-unlabeled', 'RGB', 200, (3, 32, 32)),
        (
            'depth/crd_resnet14_conv5_b64-40e_digits-depth',
            'ChannelView(channels=[3]) of RGB, depth in metres',
            10,
            (1, 16, 16),
        ),
        (
            'cross-modal/crd_resnet8-l_resnet8-ab_b50-20e_photos-unlabeled',
            "LabView(channels='ab') of RGB",
            10,
            (2, 32, 32),
        ),
        ('depth/vanilla_conv5_b20-100e_digits-depth', 'depth in metres', 11, (1, 16, 16)),
    ],
)
@pytest.mark.usefixtures('mmpretrain_scope')
def test_students_of_other_images(leaf, sees, outputs, shape, tmp_path, warned):
    """Images that are not RGB, or classes that are not the teacher's."""
    cfg, classes = parsed(CONFIGS / f'{leaf}.py'), tuple('abcdefghijk')
    folder, _ = published(tmp_path, cfg, classes, '--onnx', shape[-1])
    session = onnxruntime.InferenceSession(str(folder / 'model.onnx'))
    assert session.get_inputs()[0].shape[1:] == list(shape)
    card = (folder / 'README.md').read_text()
    assert re.search(rf'normalisation .*\], {re.escape(sees)} \|', card)
    named = outputs == len(classes)
    names = ', '.join(classes) if named else f'{outputs}, without names'
    assert f'| classes | {names} |' in card
    assert 'Inferencer' not in card  # There is no test, or no file that shows its images.
    (file,) = folder.glob('*.pth')
    assert ('classes' in load_checkpoint_file(file)['meta']['dataset_meta']) == named
    assert [
        f'{outputs} outputs, but its training images 11 classes' in text for text in warned
    ] == ([] if named else [True])


@pytest.mark.parametrize(
    'content, message',
    [
        ({'accuracy/top1': 101.0}, 'accuracy/top1 is 101.0, expected a percentage from 0 to 100'),
        ({'accuracy/top1': 50, 'config': 'a.py'}, "config is 'a.py', expected a percentage"),
        ({'accuracy/top1': float('nan')}, 'accuracy/top1 is nan'),
        ({'recall': [1.0]}, r'recall is [1.0]'),
        ({}, 'content is {}'),
        ([50.0], 'content is [50.0]'),
        ('{', 'cannot be read'),
    ],
)
def test_metrics_are_percentages(checkpoint, tmp_path, capsys, content, message):
    file = tmp_path / 'metrics.json'
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    assert call(TOOL, checkpoint, tmp_path / 'out', '--hub', '--metrics', file) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'error: metrics {file}') and message in line
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('size', [0, -1])
def test_images_that_the_network_cannot_take(checkpoint, tmp_path, capsys, size):
    assert call(TOOL, checkpoint, tmp_path / 'out', '--hub', f'--onnx={size}') == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f'error: ONNX for images of 3x{size}x{size} fails: ')
    assert not (tmp_path / 'out').exists()


def test_wrong_arguments(checkpoint, tmp_path, capsys, monkeypatch):
    for flags, message in (
        (('--onnx', '8'), '--onnx belongs to the folder of a hub: add --hub'),
        (('--hub', '--metrics', 'none.json'), 'none.json'),
    ):
        assert call(TOOL, checkpoint, tmp_path / 'out', *flags) != 0
        assert message in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    assert call(TOOL, checkpoint, tmp_path / 'out', '--hub') == 1
    assert '-r requirements/export.txt' in capsys.readouterr().err
