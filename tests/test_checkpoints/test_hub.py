"""Tests of what a model hub is given."""

import hashlib
import re
import sys

import huggingface_hub
import numpy as np
import onnxruntime
import pytest
import torch
from mmpretrain import ImageClassificationInferencer, get_model
from safetensors.torch import load_file

from crd_plugin.checkpoints import hub
from crd_plugin.compat import load_checkpoint_file
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
        '| normalisation | mean [78.0, 78.0, 78.0], std [81.4, 81.4, 81.4], BGR |',
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
