"""Pair, resize and normalise the features of student and teacher."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Features = Tensor | Sequence[Tensor]


def full_precision(tensor: Tensor) -> Tensor:
    """Convert a floating-point tensor to float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Return a context without autocast, which casts products of float32 back to half."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_samples(name: str, batch: Tensor) -> None:
    """Raise a ValueError for a batch without samples."""
    if len(batch) == 0:
        raise ValueError(f'{name} holds no sample, expected at least one; skip empty batches.')


def pair_maps(s_feats: Features, t_feats: Features) -> list[tuple[Tensor, Tensor]]:
    """Pair the feature maps of student and teacher, layer by layer; the teacher's are detached.

    Args:
        s_feats (Tensor | Sequence[Tensor]): Student maps, ``(B, C_s, H, W)`` each.
        t_feats (Tensor | Sequence[Tensor]): Teacher maps, ``(B, C_t, H, W)`` each, as many.

    Returns:
        list[tuple[Tensor, Tensor]]: Student and teacher map of each layer, float32 (float64 stays).

    Raises:
        ValueError: If the numbers of layers or the batches differ, or a feature is not a map.
        TypeError: If a layer is not a tensor.
    """
    students, teachers = _layers('s_feats', s_feats), _layers('t_feats', t_feats)
    if len(students) != len(teachers):
        raise ValueError(
            f's_feats has {len(students)} layers and t_feats {len(teachers)}, expected as many of '
            'both, paired in order; set out_indices of both backbones to stages that belong '
            'together.'
        )
    pairs = []
    for i, (student, teacher) in enumerate(zip(students, teachers)):
        for name, x in (('s_feats', student), ('t_feats', teacher)):
            if x.dim() != 4:
                raise ValueError(
                    f'{name}[{i}] has shape {tuple(x.shape)}, expected a map (B, C, H, W); record '
                    'the backbone with crd_plugin.StageOutputs.'
                )
        pairs.append(_pair(student, teacher, f'[{i}]'))
    return pairs


def pair_vectors(s_feats: Features, t_feats: Features) -> tuple[Tensor, Tensor]:
    """Flatten one feature ``(B, ...)`` of each side to ``(B, D)``, as :func:`pair_maps` pairs."""
    student, teacher = single('s_feats', s_feats), single('t_feats', t_feats)
    for name, x in (('s_feats', student), ('t_feats', teacher)):
        if x.dim() < 2:
            raise ValueError(f'{name} has shape {tuple(x.shape)}, expected (B, D) or (B, C, H, W).')
    student, teacher = _pair(student, teacher)
    return student.flatten(1), teacher.flatten(1)


def pair_logits(s_feats: Features, t_feats: Features) -> tuple[Tensor, Tensor]:
    """Pair logits ``(B, C)`` of the same two or more classes, as :func:`pair_maps` does."""
    student, teacher = pair_vectors(s_feats, t_feats)
    shapes = [tuple(single('', feats).shape) for feats in (s_feats, t_feats)]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][1] < 2:
        raise ValueError(
            f's_feats has shape {shapes[0]} and t_feats {shapes[1]}, expected logits (B, C) of '
            'the same two or more classes; record crd_plugin.Logits of networks with equal '
            'num_classes.'
        )
    return student, teacher


def match_heights(s_map: Tensor, t_map: Tensor) -> tuple[Tensor, Tensor]:
    """Average the higher of two maps ``(B, C, H, W)`` down to the height and width of the lower."""
    # As HobbitLong/RepDistiller `distiller_zoo/AT.py`, where maps are square.
    s_size, t_size = (s_map.size(2), s_map.size(3)), (t_map.size(2), t_map.size(3))
    if s_size == t_size:
        return s_map, t_map
    s_is_higher = s_size[0] > t_size[0]
    high, low = (s_size, t_size) if s_is_higher else (t_size, s_size)
    if high[0] == low[0] or high[1] < low[1]:
        raise ValueError(
            f's_map has height and width {s_size} and t_map {t_size}; the higher map is reduced to '
            'the lower one, so it must not be narrower, and equal heights need equal widths. '
            'Choose stages whose maps differ by a scale.'
        )
    if s_is_higher:
        return _pool(s_map, t_size), t_map
    return s_map, _pool(t_map, s_size)


def attention_vector(feature_map: Tensor, power: float = 2) -> Tensor:
    """Return the channel mean of ``|x|^p`` of a map, as unit vectors ``(B, H * W)``, float32."""
    x = absolute_power(full_precision(feature_map), power)
    return unit_vectors(x.mean(1).flatten(1), dim=1)


def absolute_power(x: Tensor, power: float) -> Tensor:
    """Compute ``|x|^p``, p positive, with gradient 0 at 0: for p below 1 the slope is infinite."""
    if power == 2:
        return x.square()
    if power >= 1:
        return x.abs().pow(power)
    is_zero = x == 0
    return x.abs().masked_fill(is_zero, 1).pow(power).masked_fill(is_zero, 0)


def unit_vectors(x: Tensor, dim: int) -> Tensor:
    """Divide vectors along a dimension by their L2 norm; one below 1e-12 stays as it is."""
    # So a zero vector passes the gradient on unchanged; by F.normalize it is 1e12 times as large.
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / norm.masked_fill(norm < 1e-12, 1)


def prediction_distance(prediction: Tensor, target: Tensor) -> Tensor:
    """Return ``2 - 2 cos`` per sample of vectors ``(B, D)``; the target gets no gradient."""
    # Grill et al., arXiv:2006.07733, eq. 2; numbers of ShipengFu/CoCoRD `helper/util.py` @ 645b95d.
    with no_autocast(prediction):
        prediction = unit_vectors(full_precision(prediction), dim=-1)
        target = unit_vectors(full_precision(target.detach()), dim=-1)
        return 2 - 2 * (prediction * target).sum(-1)


def _pool(feature_map: Tensor, size: tuple[int, int]) -> Tensor:
    # Where the sizes divide, both give the same; but on a GPU the backward pass of the adaptive one
    # is refused under torch.use_deterministic_algorithms.
    height, width = feature_map.shape[-2:]
    if height % size[0] or width % size[1]:
        return F.adaptive_avg_pool2d(feature_map, size)
    return F.avg_pool2d(feature_map, (height // size[0], width // size[1]))


def single(name: str, feats: Features) -> Tensor:
    """Return one feature, alone or in a sequence of one, as necks return it."""
    layers = _layers(name, feats)
    if len(layers) != 1:
        raise ValueError(
            f'{name} is a sequence of {len(layers)} tensors, expected one; choose it with data_idx '
            'in loss_forward_mappings (data_idx=-1: the last).'
        )
    return layers[0]


def _layers(name: str, feats: Features) -> list[Tensor]:
    """Return one feature or several as a list of tensors."""
    layers: list = list(feats) if isinstance(feats, (tuple, list)) else [feats]
    for layer in layers:
        if not isinstance(layer, Tensor):
            raise TypeError(
                f'{name} holds {type(layer).__name__}, expected a tensor or a list of tensors; '
                'choose it with data_idx in loss_forward_mappings.'
            )
    if not layers:
        raise ValueError(
            f'{name} is empty, expected at least one layer; set out_indices of the backbone.'
        )
    return layers


def _pair(s_feats: Tensor, t_feats: Tensor, layer: str = '') -> tuple[Tensor, Tensor]:
    """Return both features in full precision, the teacher's detached; check their batch."""
    if len(s_feats) != len(t_feats):
        raise ValueError(
            f's_feats{layer} has {len(s_feats)} samples and t_feats{layer} {len(t_feats)}; both '
            'must come from the same batch.'
        )
    check_samples(f's_feats{layer}', s_feats)
    return full_precision(s_feats), full_precision(t_feats.detach())
