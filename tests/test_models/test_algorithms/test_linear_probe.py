"""LinearProbe: only the head trains, on the network of any checkpoint."""

import copy

import pytest
import torch

from crd_plugin.registry import MODELS
from tests import small_runs

pytestmark = pytest.mark.usefixtures('mmpretrain_scope')


def build(width=6, **changes):
    """A probe of the student of ``small_runs``, for three classes."""
    cfg = small_runs.net(width, dropout=0.2)
    cfg['head']['num_classes'] = 3
    return MODELS.build({**copy.deepcopy(cfg), 'type': 'crd_plugin.LinearProbe', **changes})


def step(model):
    images, samples = small_runs.batch()
    for number, sample in enumerate(samples):
        sample.set_gt_label(number % 3)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(images, samples, mode='loss')['loss'].backward()
    optimizer.step()
    return model


@pytest.fixture(params=['distilled', 'alone', 'bare'])
def checkpoint(request, tmp_path):
    """A checkpoint of a kind, and the weights of the student's backbone in it."""
    model = MODELS.build(small_runs.model())
    model.init_weights()
    student = model.architecture.state_dict()
    weights = dict(distilled=model.state_dict(), alone=student, bare=student)[request.param]
    loaded = weights if request.param == 'bare' else dict(state_dict=weights, meta={})
    torch.save(loaded, tmp_path / 'net.pth')
    return str(tmp_path / 'net.pth'), model.architecture.backbone.state_dict()


def test_the_network_of_a_checkpoint_stays_as_it_is(checkpoint):
    path, expected = checkpoint
    model = build(backbone_ckpt=path)
    model.init_weights()
    head = model.head.fc.weight.clone()
    step(model)
    found = model.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(model.head.fc.weight, head)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {'head.fc.weight', 'head.fc.bias'}
    # Dropout would draw another mask for each batch.
    assert not any(module.training for module in model.backbone.modules())
    assert not model.extract_feat(torch.zeros(2, 3, 8, 8))[0].requires_grad


def test_batch_norm_may_follow_the_images(checkpoint):
    path, expected = checkpoint
    model = step(build(backbone_ckpt=path, norm_eval=False))
    found = model.backbone.state_dict()
    moved = {name for name, value in expected.items() if not torch.equal(found[name], value)}
    assert moved == {'bn.running_mean', 'bn.running_var', 'bn.num_batches_tracked'}
    assert not model.backbone.drop.training
    assert not model.eval().backbone.bn.training


def test_finetuning_trains_the_whole_network(checkpoint):
    path, expected = checkpoint
    model = build(backbone_ckpt=path, finetune=True)
    model.init_weights()
    found = model.backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    step(model)
    assert all(not torch.equal(found[name], expected[name]) for name in expected)
    assert model.backbone.drop.training
    with torch.no_grad():
        assert not model.extract_feat(torch.zeros(2, 3, 8, 8))[0].requires_grad


def test_another_network_is_refused(checkpoint):
    with pytest.raises(
        ValueError,
        match=r'^backbone_ckpt=.*net.pth does not fit .*backbone.conv.weight \(6, 3, 3, 3\) '
        r'instead of \(7, 3, 3, 3\).* model.backbone is that of the checkpoint',
    ):
        build(width=7, backbone_ckpt=checkpoint[0])
    with pytest.raises(ValueError, match='^head is None, but it is all that a LinearProbe trains'):
        build(head=None)


def test_random_weights_cause_a_warning(warned):
    build().init_weights()
    assert [text for text in warned if text.startswith('backbone_ckpt is not given')]
