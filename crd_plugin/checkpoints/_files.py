"""Reading and writing of checkpoint files, for all tools that turn one into another."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def serialize(weights: dict[str, Tensor], meta: dict[str, Any]) -> bytes:
    """Serialize a checkpoint; equal input gives equal bytes."""
    # A view would be saved with all of the storage behind it.
    state = OrderedDict((key, value.detach().clone()) for key, value in weights.items())
    # Not into a file, whose name torch would write into the bytes.
    buffer = io.BytesIO()
    torch.save(dict(meta=meta, state_dict=state), buffer)
    return buffer.getvalue()


def write_once(content: bytes, target: Path) -> Path:
    """Write a file completely or not at all, and never over another file."""
    if target.is_dir():
        raise FileExistsError(
            f'OUT {target} is a folder; give a file in it, such as {target / "resnet32x4.pth"}.'
        )
    if target.exists():
        if target.read_bytes() == content:
            return target
        raise FileExistsError(
            f'{target} exists already and is another file; remove it or choose another OUT.'
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f'.{target.name}-{os.getpid()}.part')
    try:
        with open(part, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return target
