"""Reference numbers and their tolerances.

The arrays under ``tests/data/golden`` were made by running
HobbitLong/RepDistiller (CRD, ``zoo_*``), kaiqi123/CKTF, ShipengFu/CoCoRD and
Lan1991Xu/ONE_NeurIPS2018 (``online_kd``) on seeded inputs, on a CPU with torch
2.13; InfoNCE, which RepDistiller lacks, by its definition.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_FOLDER = Path(__file__).parent / 'data' / 'golden'


def load(name: str) -> dict[str, Tensor]:
    """Arrays of one case as tensors; 0-d numbers too."""
    with np.load(_FOLDER / f'{name}.npz', allow_pickle=False) as arrays:
        return {
            key: torch.from_numpy(np.asarray(arrays[key]))
            for key in arrays.files
            if arrays[key].dtype.kind in 'fi'
        }


def assert_value(actual: Tensor, expected: Tensor) -> None:
    """Losses, scores, embeddings, banks: 1e-4 in float32, 1e-9 in float64."""
    rtol, atol = (1e-9, 1e-10) if _is_double(expected) else (1e-4, 1e-6)
    torch.testing.assert_close(actual.detach().to(expected.dtype), expected, rtol=rtol, atol=atol)


def assert_grad(actual: Tensor, expected: Tensor) -> None:
    """Gradients: 1e-3 of the value and 1e-5 of the largest in float32."""
    rtol, share = (1e-9, 1e-10) if _is_double(expected) else (1e-3, 1e-5)
    torch.testing.assert_close(
        actual.to(expected.dtype), expected, rtol=rtol, atol=share * float(expected.abs().max())
    )


def _is_double(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64
