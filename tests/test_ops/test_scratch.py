"""Memory that is kept."""

import threading

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from crd_plugin.ops.scratch import release, scratch


def test_kept_by_name_dtype_and_thread():
    like = torch.zeros(())
    first = scratch('test', (4, 5), like)
    assert first.shape == (4, 5) and first.dtype == torch.float32
    again = scratch('test', (2, 3), like)
    assert again.data_ptr() == first.data_ptr() and again.is_contiguous()
    assert scratch('other', (2,), like).data_ptr() != first.data_ptr()
    double = scratch('test', (2,), like.double())
    assert double.dtype == torch.float64
    found = []
    thread = threading.Thread(target=lambda: found.append(scratch('test', (2,), like)))
    thread.start()
    thread.join()
    assert found[0].data_ptr() != first.data_ptr()


def test_grows():
    like = torch.zeros(())
    scratch('grows', (3,), like)
    larger = scratch('grows', (100,), like).fill_(2)
    assert larger.numel() == 100
    assert scratch('grows', (3,), like).data_ptr() == larger.data_ptr()


def test_first_asked_for_in_inference_mode():
    """What is kept must not be an inference tensor."""
    like = torch.zeros(())
    with torch.inference_mode():
        scratch('inference', (3,), like)
    kept = scratch('inference', (3,), like)
    assert not kept.is_inference()
    kept.fill_(1)


def test_the_default_device_does_not_count():
    like = torch.zeros(())
    release()
    with torch.device('meta'):
        assert scratch('device', (3,), like).device.type == 'cpu'
    assert scratch('device', (3,), like).device.type == 'cpu'


def test_fake_tensors_are_not_kept():
    release()
    with FakeTensorMode() as mode:
        fake = scratch('fake', (3,), mode.from_tensor(torch.zeros(())))
        assert isinstance(fake, FakeTensor)
    assert type(scratch('fake', (3,), torch.zeros(()))) is torch.Tensor


def test_release():
    like = torch.zeros(())
    kept = scratch('release', (3,), like).fill_(5)
    release()
    scratch('release', (3,), like).fill_(1)
    assert kept.tolist() == [5, 5, 5]
