"""Leading singular vectors and their gradient."""

import torch
from torch import Tensor

# Eigenvalues that differ by less than this share of the largest count as equal.
_GAP = 1e-12


def right_singular_vectors(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Compute the right singular vectors of the k largest singular values.

    They come from eigenvectors of the smaller Gram matrix, in float64, where squaring the condition
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
    double = x.double()
    is_wide = x.size(2) > x.size(1)
    rows = double if is_wide else double.mT
    gram = rows @ rows.mT
    values, vectors = torch.linalg.eigh(gram.detach())
    values, vectors = values.clamp(min=0).flip(1), vectors.flip(2)
    kept, tolerance = values[:, None, :k], _GAP * values[:, :1, None]
    gaps = kept - values[:, :, None]  # (B, all, k)
    is_equal = gaps.abs() <= tolerance
    inverse = (1 / gaps.masked_fill(is_equal, 1)).masked_fill(is_equal, 0)
    # A change of the matrix turns a vector towards each other one, by the gap of their eigenvalues.
    # The change is zero here, so the values stay; its gradient is that of the vectors.
    top = vectors[..., :k]
    top = top + vectors @ (vectors.mT @ (gram - gram.detach()) @ top * inverse)
    if is_wide:  # From left vectors u to right ones: v = x^T u, normalised.
        top = double.mT @ top
        norm = torch.linalg.vector_norm(top, dim=1, keepdim=True)
        top = top / norm.masked_fill(norm == 0, 1)
        top = torch.where(kept <= tolerance, top.detach(), top)
    return top.to(x.dtype), values[:, :k].sqrt().to(x.dtype)
