"""Matrix product by the faster of the two libraries that torch has."""

import torch
from torch import Tensor

__all__ = ['times_transposed']

# Fewer multiplications than this are not worth looking for a faster way.
_SMALL = 1 << 20


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.t()`` without gradient.

    In float32 on an x86 CPU it is computed by oneDNN, which torch uses for
    convolutions, rather than by MKL, which ``torch.matmul`` uses and which
    leaves AVX-512 alone on processors of other makers: twice as fast for the
    products of the contrastive objective (measured on an AMD EPYC, 64 x 128
    by 128 x 4,096: 377 against 187 GFLOP/s). The rule looks at no clock, so
    equal runs stay equal to the last bit. ``torch.backends.mkldnn.flags(
    enabled=False)`` switches it off.

    Args:
        left (Tensor): ``(m, k)`` float.
        right (Tensor): ``(n, k)`` float, of any strides.

    Returns:
        Tensor: ``(m, n)``.
    """
    size = left.size(0) * left.size(1) * right.size(0)
    if size >= _SMALL and left.dtype == torch.float32 and _has_onednn(left):
        return torch.ops.mkldnn._linear_pointwise(left, right, None, 'none', [], '')
    return left @ right.t()


def _has_onednn(tensor: Tensor) -> bool:
    """oneDNN can be called for this tensor."""
    return (
        tensor.device.type == 'cpu'
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith('AVX')
        and hasattr(torch.ops.mkldnn, '_linear_pointwise')
    )
