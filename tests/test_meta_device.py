"""What the stand-in for a GPU sees, and what it lets pass."""

import pytest
import torch

from tests.meta_device import Wait, Watch, empty

DOUBT = dict(
    item=lambda x: x[0, 0].item(),  # refused by torch, as all that returns numbers or a mask's size
    mask_written=lambda x: x.__setitem__(x > 0, empty(5)),
    mixed=lambda x: x + torch.ones(3),
    host_index=lambda x: x[torch.tensor([0, 1])],
    device_index=lambda x: torch.ones(4, 3)[x[:, 0].long()],
    backward=lambda x: _with_gradient(lambda grad: grad * torch.ones(3)),
)
COPIED = dict(
    copy=('copy', lambda x: torch.ones(3).to('meta')),
    written=('copy', lambda x: x.copy_(torch.ones(4, 3))),
    numbers=('numbers', lambda x: torch.tensor(data=[1.0], device='meta')),
    new=('numbers', lambda x: x.new_tensor([1.0])),
    list_index=('numbers', lambda x: x[[0, 1]]),
    eigh=('_linalg_eigh', lambda x: torch.linalg.eigh(x[:3])),
)
FREE = dict(
    from_pinned=lambda x: torch.ones(3).to('meta', non_blocking=True),
    into=lambda x: x.copy_(torch.ones(4, 3), non_blocking=True),
    full=lambda x: x.new_full((1,), 7).add_(2).mul_(torch.ones(())),
    masked_fill=lambda x: x.__setitem__(x > 0, 1.0),
    index=lambda x: x[x[:, 0].long()].sum(),
    backward=lambda x: _with_gradient(lambda grad: grad * grad),
)


def _with_gradient(hook):
    x = empty(4, 3, requires_grad=True)
    x.register_hook(hook)
    x.square().sum().backward()


@pytest.mark.parametrize('name', DOUBT)
def test_what_reads_back_or_mixes_is_refused(name):
    with (
        Watch(),
        pytest.raises((RuntimeError, NotImplementedError, TypeError), match='(?i)meta|host|mask'),
    ):
        DOUBT[name](empty(4, 3))


@pytest.mark.parametrize('name', COPIED)
def test_what_a_gpu_is_waited_for_is_noted(name):
    what, function = COPIED[name]
    with Watch() as watch:
        function(empty(4, 3))
    assert watch.waits == {Wait(what, __name__)}


@pytest.mark.parametrize('name', FREE)
def test_what_costs_nothing_is_not_noted(name):
    with Watch() as watch:
        FREE[name](empty(4, 3))
    assert watch.waits == set()
