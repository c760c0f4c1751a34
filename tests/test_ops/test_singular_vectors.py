"""Leading right singular vectors and their gradient."""

import pytest
import torch

from crd_plugin.ops import right_singular_vectors

SHAPES = [(2, 7, 4), (2, 4, 7), (2, 5, 5)]


def matrices(shape, dtype=torch.float64):
    torch.manual_seed(0)
    return torch.randn(shape).to(dtype).requires_grad_()


def by_svd(x, k):
    _, s, vh = torch.linalg.svd(x, full_matrices=False)
    return vh.transpose(1, 2)[..., :k], s[:, :k]


@pytest.mark.parametrize('k', [1, 3, 4])
@pytest.mark.parametrize('shape', SHAPES)
def test_vectors_values_and_gradient_are_those_of_the_svd(shape, k):
    x = matrices(shape)
    v, sigma = right_singular_vectors(x, k)
    expected, values = by_svd(x, k)
    sign = (v * expected).sum(1, keepdim=True).sign().detach()
    torch.testing.assert_close(v, expected * sign)
    torch.testing.assert_close(sigma, values)
    assert not sigma.requires_grad
    cotangent = torch.randn_like(v)
    (ours,) = torch.autograd.grad((v * cotangent).sum(), x)
    (theirs,) = torch.autograd.grad((expected * sign * cotangent).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('shape', SHAPES)
def test_gradient_by_differences(shape):
    x = matrices(shape)

    def projector(x):  # Whatever the signs.
        v, _ = right_singular_vectors(x, 2)
        return v @ v.transpose(1, 2)[:, :, :2]

    assert torch.autograd.gradcheck(projector, x)


@pytest.mark.parametrize('shape', [(1, 6, 5), (1, 5, 6)])
def test_dead_channels_have_a_finite_gradient(shape):
    """Torch's is NaN: two singular values are zero."""
    x = matrices(shape, torch.float32)
    x.data[..., -3:] = 0
    v, _ = right_singular_vectors(x, 1)
    cotangent = torch.arange(1.0, v.numel() + 1).view_as(v)
    (v * cotangent).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    vectors, _ = by_svd(x, 1)
    (theirs,) = torch.autograd.grad((vectors * cotangent).sum(), x)
    assert not torch.isfinite(theirs).all()


@pytest.mark.parametrize('shape', SHAPES)
def test_matrix_of_zeros(shape):
    x = torch.zeros(shape, requires_grad=True)
    v, sigma = right_singular_vectors(x, 2)
    v.sum().backward()
    assert torch.equal(sigma, torch.zeros(2, 2))
    assert torch.isfinite(v).all()
    assert torch.equal(x.grad, torch.zeros(shape))


def test_vectors_of_equal_singular_values():
    x = torch.eye(3, dtype=torch.float64)[None].requires_grad_()
    v, sigma = right_singular_vectors(x, 2)
    torch.testing.assert_close(sigma, torch.ones(1, 2).double())
    v.square().sum().backward()
    assert torch.isfinite(x.grad).all()
