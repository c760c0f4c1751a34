"""A copied or pickled model computes as the original, and records into itself."""

import copy
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS

from crd_plugin.models import MemoryBank
from tests import small_runs

# One method per kind of algorithm, recorder and state.
METHODS = ('crd', 'cktf', 'ab', 'cocord', 'online-kd', 'fitnet')


def losses(model, images):
    """Losses of one training step, from equal random numbers."""
    for module in model.modules():
        if hasattr(module, 'discard'):
            module.discard()
        if hasattr(module, 'update_averages'):
            module.update_averages()
    torch.manual_seed(3)
    images = [images, images.flip(3), -images] if getattr(model, 'num_views', 1) == 3 else images
    return model(images, small_runs.batch(4)[1], mode='loss')


@pytest.mark.parametrize('method', METHODS)
def test_copies(method):
    init_default_scope('mmpretrain')
    (path,) = (small_runs.REPO / 'configs' / method).glob(f'{method}_*digits.py')
    cfg = Config.fromfile(path).model
    if 'teacher' in cfg:
        cfg.teacher_ckpt = None
    model = MODELS.build(cfg).train()
    for bank in model.modules():
        if isinstance(bank, MemoryBank):
            bank.resize(20, torch.arange(20) % 10)
    if hasattr(model, 'stages'):
        model.set_stage('init')
    images = torch.randn(4, 3, 16, 16)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    expected = losses(model, images)
    for other in copies:
        found = losses(other, images)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        assert any(not torch.equal(losses(other, images)[k], expected[k]) for k in expected)
