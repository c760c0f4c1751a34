"""Checks of ids, labels and embeddings, for CRDLoss and MemoryBankHook."""

import os
from importlib.util import find_spec

import torch
from mmengine.dist import get_world_size
from torch import Tensor

from crd_plugin.ops.features import check_samples

# How far from 1 the norm of an embedding may be: float16 rounding of 128 numbers stays below it, a
# forgotten normalisation does not.
_NORM_TOLERANCE = 1e-2


def check_column(name: str, ids: Tensor, batch: int | None = None) -> None:
    """Raise a ValueError for what is not one int64 per sample."""
    if ids.dtype != torch.int64 or ids.dim() != 1 or batch not in (None, ids.numel()):
        raise ValueError(
            f'{name} is {ids.dtype} of shape {tuple(ids.shape)}, expected int64 of shape '
            f'({"B" if batch is None else batch},); record it with crd_plugin.SampleField.'
        )
    check_samples(name, ids)


def check_range(name: str, ids: Tensor, num_rows: int) -> None:
    """Raise a ValueError for ids that the bank has no row for."""
    outside = ids[(ids < 0) | (ids >= num_rows)]
    if outside.numel():
        raise ValueError(
            f'{name} {int(outside[0])} is outside the memory bank of {num_rows} rows; the bank '
            'must be sized from the training set: leave num_samples out, and wrap that data set in '
            'crd_plugin.SampleIndexDataset.'
        )


def check_labels(given: Tensor, expected: Tensor, sample_idx: Tensor) -> None:
    """Raise a ValueError for samples that are not those of the bank."""
    wrong = (given != expected).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise ValueError(
            f"labels: sample {int(sample_idx[at])} has label {int(given[at])}, the memory bank's "
            f'row has {int(expected[at])}; the batch comes from another data set, or another order '
            'of it, than the bank was sized from.'
        )


def check_positives(contrast_idx: Tensor, sample_idx: Tensor, labels: Tensor) -> None:
    """Raise a ValueError for positives that are neither the sample nor, with labels, like it."""
    positive = contrast_idx[:, 0]
    wrong = positive != sample_idx
    if labels.numel():  # mode='relax' takes any sample of the class.
        found = labels[positive]
        wrong &= (found != labels[sample_idx]) | (found < 0)
    if wrong.any():
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f'contrast_idx: the positive of sample {int(sample_idx[at])} is {int(positive[at])}, '
            'expected the sample itself or one of its class; the first column of contrast_idx '
            'holds the positive, the others the negatives.'
        )


def check_embeddings(name: str, side: str, feats: Tensor) -> None:
    """Raise a ValueError for embeddings ``(B, D)`` whose norm is not finite, or neither 1 nor 0."""
    norm = feats.detach().float().norm(dim=1)
    if not torch.isfinite(norm).all():
        bad = int((~torch.isfinite(norm)).sum())
        raise ValueError(
            f'{name}: {bad} of {norm.numel()} {side} embeddings are NaN or infinite; the {side} or '
            'its connector has diverged: lower the learning rate, clip gradients, or check its '
            'checkpoint.'
        )
    # A zero vector stays zero under F.normalize; it is no error of scale.
    off = ((norm - 1).abs() > _NORM_TOLERANCE) & (norm > 0)
    if off.any():
        raise ValueError(
            f'{name}: a {side} embedding has L2 norm {float(norm[off][0]):.4g}, expected 1; put a '
            'crd_plugin.EmbeddingConnector, which normalises, in front of the loss.'
        )


def check_feats(s_feats: Tensor, t_feats: Tensor, batch: int, embed_dim: int) -> None:
    """Raise a ValueError unless there is one unit embedding ``(B, D)`` per sample and side."""
    sides = (('s_feats', 'student', s_feats), ('t_feats', 'teacher', t_feats))
    for name, side, feats in sides:
        if feats.shape != (batch, embed_dim):
            raise ValueError(
                f'{name} has shape {tuple(feats.shape)}, expected ({batch}, {embed_dim}): one '
                'embedding of width embed_dim per sample; put a crd_plugin.EmbeddingConnector '
                f'with embed_dim={embed_dim} in front of it.'
            )
        check_samples(name, feats)
        if feats.device.type == 'cpu':  # On a GPU MemoryBankHook looks now and then.
            check_embeddings(name, side, feats)


def check_fast_paths(kernel: str, cuda_graph: bool, device: torch.device) -> None:
    """Raise a ValueError for a kernel or a graph that cannot work here."""
    if kernel == 'triton' and find_spec('triton') is None:
        raise ValueError(
            "kernel='triton' needs the package triton, which is not installed; install it, or "
            'leave kernel out.'
        )
    interpreted = os.environ.get('TRITON_INTERPRET') == '1'
    for name, wanted in (
        ("kernel='triton'", kernel == 'triton' and not interpreted),
        ('cuda_graph=True', cuda_graph),
    ):
        if wanted and device.type != 'cuda':
            raise ValueError(f'{name} needs a GPU, the memory bank is on {device}; leave it out.')
    if cuda_graph and get_world_size() > 1:
        raise ValueError(
            f'cuda_graph=True works in one process, this run has {get_world_size()}: a graph would '
            'write rows before those of the other ranks are known; leave it out.'
        )
