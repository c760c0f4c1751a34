"""KeyQueue: staged, committed, saved, refused."""

import copy

import pytest
import torch
import torch.nn.functional as F

from crd_plugin.models import KeyQueue
from crd_plugin.registry import MODELS


@pytest.fixture
def queue():
    return KeyQueue(embed_dim=3, size=5)


def test_fresh_queue():
    queue = MODELS.build(dict(type='crd_plugin.KeyQueue', embed_dim=16))
    assert queue.keys.shape == (2048, 16)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(2048))
    assert int(queue.pointer) == 0 and queue.pending is None
    # All directions are equally likely.
    assert queue.keys.mean(0).abs().max() < 0.05


def test_staged_keys_are_written_by_commit(queue):
    before = copy.deepcopy(queue.state_dict())
    weight = torch.ones(4, 3, requires_grad=True)
    keys = F.normalize(torch.randn(4, 3) * weight)
    queue.stage(keys)
    for name, value in queue.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.equal(queue.pending, keys) and not queue.pending.requires_grad
    queue.commit()
    assert torch.equal(queue.keys[:4], keys)
    assert torch.equal(queue.keys[4], before['keys'][4])
    assert int(queue.pointer) == 4 and queue.pending is None
    queue.stage(keys)
    queue.commit()
    assert torch.equal(queue.keys, keys[[1, 2, 3, 3, 0]])


def test_state_dict_round_trip(queue):
    queue.stage(torch.ones(3, 3))
    queue.commit()
    queue.stage(torch.ones(1, 3))
    other = KeyQueue(embed_dim=3, size=5)
    other.stage(torch.ones(1, 3))
    other.load_state_dict(queue.state_dict())
    assert torch.equal(other.keys, queue.keys)
    assert int(other.pointer) == 3
    assert other.pending is None  # it belonged to another state
    assert queue.pending is not None
    assert set(queue.state_dict()) == {'keys', 'pointer'}


@pytest.mark.parametrize('size, width', [(4, 3), (5, 2)])
def test_checkpoint_of_another_size(queue, size, width):
    """Also where a caller is not strict, as MMEngine is not."""
    message = (
        f'has {size} keys of width {width}, this one 5 of width 3; set queue_size and embed_dim'
    )
    with pytest.raises(ValueError, match=message):
        queue.load_state_dict(KeyQueue(width, size).state_dict(), strict=False)


def test_keys_that_cannot_be_staged_or_committed(queue):
    queue.stage(torch.ones(1, 3))
    with pytest.raises(RuntimeError, match=r"CoCoRDHook is missing; add dict\(type='crd_plugin"):
        queue.stage(torch.ones(1, 3))
    queue.discard()
    with pytest.raises(RuntimeError, match='has no pending keys'):
        queue.commit()
