"""Leading singular vectors, with a gradient of these alone."""

from typing import Tuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Eigenvalues this close, relative to the largest, count as equal.
_GAP = 1e-12


def right_singular_vectors(x: Tensor, k: int) -> Tuple[Tensor, Tensor]:
    """Right singular vectors of the largest singular values.

    From the smaller Gram matrix, in float64, where squaring the condition
    does no harm. The backward of ``torch.linalg.svd`` divides by the
    differences of all pairs of singular values, so two zeros, as dead
    channels give, make it NaN; here only pairs with one of the k vectors
    count, and vectors of equal singular values do not turn into each other.

    The sign of a vector is arbitrary.

    Args:
        x (Tensor): Matrices, ``(B, N, C)``.
        k (int): Vectors to keep, at most ``min(N, C)``.

    Returns:
        tuple[Tensor, Tensor]: Vectors ``(B, C, k)`` of unit length, with
        gradient, and their singular values ``(B, k)``, largest first,
        without; of the type of ``x``.
    """
    return _RightSingularVectors.apply(x, k)


class _RightSingularVectors(torch.autograd.Function):
    """Perturbation theory of the eigenvectors of ``x^T x``."""

    @staticmethod
    def forward(ctx, x: Tensor, k: int) -> Tuple[Tensor, Tensor]:
        """Eigenvectors of the smaller of ``x^T x`` and ``x x^T``."""
        double = x.double()
        is_wide = x.size(2) > x.size(1)
        rows = double if is_wide else double.transpose(1, 2)
        values, vectors = torch.linalg.eigh(rows @ rows.transpose(1, 2))
        values = values.clamp(min=0).flip(1)
        vectors = vectors.flip(2)
        top = vectors[..., :k]
        if is_wide:  # v = x^T u over its norm.
            top = double.transpose(1, 2) @ top
            norm = torch.linalg.vector_norm(top, dim=1, keepdim=True)
            top = top / norm.masked_fill(norm == 0, 1)
        sigma = values[:, :k].sqrt().to(x.dtype)
        ctx.save_for_backward(x, values, vectors, top)
        ctx.mark_non_differentiable(sigma)
        return top.to(x.dtype), sigma

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _) -> Tuple[Tensor, None]:
        """Turn each vector towards all others by their eigenvalue gap."""
        x, values, vectors, top = ctx.saved_tensors
        x, grad = x.double(), grad.double()
        k = grad.size(2)
        # 1 / (value of a kept vector - value of any), 0 for equal ones.
        gap = values[:, None, :k] - values[:, :, None]
        equal = gap.abs() <= _GAP * values[:, :1, None]
        inverse = (1 / gap.masked_fill(equal, 1)).masked_fill(equal, 0)
        if x.size(2) > x.size(1):
            # Of the right vectors only x^T u is at hand, their multiple by
            # the singular value, and all others have eigenvalue 0.
            own = values[:, None, :k]
            tiny = own <= _GAP * values[:, :1, None]
            own = (1 / own.masked_fill(tiny, 1)).masked_fill(tiny, 0)
            inner = vectors.transpose(1, 2) @ (x @ grad) * inverse
            turn = x.transpose(1, 2) @ (vectors @ inner)
            along = top * (top * grad).sum(1, keepdim=True)
            turn = (turn + grad - along) * own
        else:
            turn = vectors @ (vectors.transpose(1, 2) @ grad * inverse)
        grad_x = (x @ turn) @ top.transpose(1, 2) + (x @ top) @ turn.transpose(1, 2)
        return grad_x.to(ctx.saved_tensors[0].dtype), None
