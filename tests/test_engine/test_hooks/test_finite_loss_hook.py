"""The hook sees what a model's train_step returns; the runner is a stand-in."""

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import RuntimeInfoHook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper

from crd_plugin.engine import FiniteLossHook


@pytest.fixture
def runner():
    wrapper = OptimWrapper(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05))
    hub = MessageHub('finite_loss')
    return SimpleNamespace(epoch=2, optim_wrapper=wrapper, message_hub=hub)


def look_at(runner, **losses):
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    for hook in (RuntimeInfoHook(), FiniteLossHook()):
        hook.after_train_iter(runner, 6, None, tensors)


def test_finite_losses_and_other_outputs_pass(runner):
    look_at(runner, loss=1e30, loss_ce=1e30, grad_norm=math.inf)
    FiniteLossHook().after_train_iter(runner, 6, None, None)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
def test_the_loss_is_named(runner, value):
    with pytest.raises(ValueError) as caught:
        look_at(runner, **{'student.loss': 1.0, 'distill.loss_at': value, 'loss': value})
    message = str(caught.value)
    assert message.startswith('distill.loss_at is NaN or infinite in epoch 3, iteration 7')
    assert 'optimizer.lr (now 0.05)' in message


def test_several_losses_or_only_their_sum(runner):
    with pytest.raises(ValueError, match='^a.loss, b.loss are NaN'):
        look_at(runner, **{'a.loss': math.nan, 'b.loss': math.inf, 'loss': math.nan})
    with pytest.raises(ValueError, match='^loss is NaN'):
        look_at(runner, **{'a.loss': 3e38, 'b.loss': 3e38, 'loss': math.inf})
