"""Leading singular vectors and their gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Eigenvalues that differ by less than this share of the largest count as equal.
_GAP = 1e-12


def right_singular_vectors(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute the right singular vectors of the k largest singular values.

    They are eigenvectors of the smaller Gram matrix, in float64, where squaring the condition
    number does no harm. The backward pass of ``torch.linalg.svd`` divides by the differences of all
    pairs of singular values, so it gives NaN as soon as two are zero, as dead channels make them.
    Here only pairs with one of the k vectors count, and equal singular values are skipped.

    The sign of a vector is arbitrary.

    Args:
        x (Tensor): Matrices, ``(B, N, C)`` float.
        k (int): Vectors to keep, at most ``min(N, C)``.

    Returns:
        tuple[Tensor, Tensor]: Unit vectors ``(B, C, k)``, with gradient, and their singular values
        ``(B, k)``, largest first, without; both of the type of ``x``.
    """
    return _RightSingularVectors.apply(x, k)


class _RightSingularVectors(torch.autograd.Function):
    """First-order perturbation theory of the eigenvectors of ``x^T x``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Take the eigenvectors of the smaller of ``x^T x`` and ``x x^T``."""
        double = x.double()
        is_wide = x.size(2) > x.size(1)
        rows = double if is_wide else double.mT
        values, vectors = torch.linalg.eigh(rows @ rows.mT)
        values, vectors = values.clamp(min=0).flip(1), vectors.flip(2)
        top = vectors[..., :k]
        if is_wide:  # From left vectors u to right ones: v = x^T u, normalised.
            top = double.mT @ top
            norm = torch.linalg.vector_norm(top, dim=1, keepdim=True)
            top = top / norm.masked_fill(norm == 0, 1)
        sigma = values[:, :k].sqrt().to(x.dtype)
        ctx.save_for_backward(x, values, vectors, top)
        ctx.mark_non_differentiable(sigma)
        return top.to(x.dtype), sigma

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Rotate each kept vector towards all others, by the gap of their eigenvalues."""
        x, values, vectors, top = ctx.saved_tensors
        dtype, x, grad = x.dtype, x.double(), grad.double()
        kept, tolerance = values[:, None, : grad.size(2)], _GAP * values[:, :1, None]
        inverse = _safe_inverse(kept - values[:, :, None], tolerance)  # (B, all, k)
        if x.size(2) > x.size(1):
            # The left vectors are known; all right vectors beyond them have eigenvalue 0.
            inner = vectors.mT @ (x @ grad) * inverse
            rotation = x.mT @ (vectors @ inner)
            parallel = top * (top * grad).sum(1, keepdim=True)
            rotation = (rotation + grad - parallel) * _safe_inverse(kept, tolerance)
        else:
            rotation = vectors @ (vectors.mT @ grad * inverse)
        grad_x = (x @ rotation) @ top.mT + (x @ top) @ rotation.mT
        return grad_x.to(dtype), None


def _safe_inverse(x: Tensor, tolerance: Tensor) -> Tensor:
    """Return ``1 / x``, and 0 where ``|x|`` is within the tolerance."""
    is_zero = x.abs() <= tolerance
    return (1 / x.masked_fill(is_zero, 1)).masked_fill(is_zero, 0)
