"""CRD on pixels and tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from .._numbers import count
from .crd_loss import CRDLoss


@MODELS.register_module()
class DenseCRDLoss(nn.Module):
    r"""Contrast embeddings at drawn locations: pixels of a map or tokens of a transformer.

    In each image the same ``num_locations`` locations are drawn of student and teacher, without
    replacement. A side with one embedding per image is global: it stands against every location,
    which gives local features of a student against the global feature of a teacher (Tian et al.,
    arXiv:1910.10699, section 4.2, ImageNet to NYU-Depth; Hjelm et al., arXiv:1808.06670). What is
    drawn goes to a :class:`CRDLoss` with keys, so that no location is a negative of one that it
    belongs with:

    * ``exclude='instance'``: the key is the image. With a memory bank the row of an image is that
      of the last location drawn in it.
    * ``exclude='class'`` with labels ``(B,)``: the key is the class of the image.
    * ``exclude='class'`` with label maps ``(B, H, W)``, without a bank and with two local sides:
      the key is the class of the pixel nearest to the location. Unlabelled ones are left out.

    Args:
        num_locations (int): Locations drawn per image; all if there are fewer. Defaults to 16.
        ignore_index (int): Value of unlabelled pixels in label maps. Defaults to 255.
        **crd: Arguments of :class:`CRDLoss`, such as ``negatives='batch'``.

    Shape:
        s_feats, t_feats: ``(B, D, H, W)``, ``(B, N, D)`` or ``(B, D)`` float with unit L2 norm over
        D, from :class:`~crd_plugin.models.connectors.DenseEmbeddingConnector` or, for a global
        side, :class:`~crd_plugin.models.connectors.EmbeddingConnector`.
        sample_idx: position of each image in the training set, ``(B,)`` int64; a memory bank and
        ``exclude='instance'`` need it. labels: ``(B,)`` int64, or maps ``(B, H, W)`` of any size.

    Raises:
        ValueError, TypeError: As :class:`CRDLoss`.
    """

    def __init__(self, num_locations: int = 16, ignore_index: int = 255, **crd: Any) -> None:
        super().__init__()
        self.num_locations = count('num_locations', num_locations)
        self.ignore_index = ignore_index
        self.crd = CRDLoss(**crd)

    def forward(
        self,
        s_feats: Tensor,
        t_feats: Tensor,
        sample_idx: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Draw locations and compute the loss of one batch; shapes are those of the class."""
        student, teacher = _locations('s_feats', s_feats), _locations('t_feats', t_feats)
        total = max(student.size(1), teacher.size(1))
        grids = {tuple(x.shape[2:]) for x in (s_feats, t_feats) if x.dim() == 4} - {(1, 1)}
        fits = {student.size(1), teacher.size(1)} <= {1, total} and len(grids) < 2
        if not fits or len(student) != len(teacher):
            raise ValueError(
                f's_feats has shape {tuple(s_feats.shape)} and t_feats {tuple(t_feats.shape)}, '
                'expected one batch and as many locations on both sides, or one global side; '
                'choose stages whose maps have one size with data_idx in loss_forward_mappings.'
            )
        if sample_idx is None and (self.crd.exclude == 'instance' or self.crd.bank is not None):
            raise ValueError(
                "sample_idx is None, but a memory bank and exclude='instance' need the image that "
                'each location is from; record it with crd_plugin.SampleField, and wrap the '
                'training set in crd_plugin.SampleIndexDataset.'
            )
        batch, of_pixels = len(student), labels is not None and labels.dim() > 1
        if labels is not None and of_pixels:
            size = tuple(s_feats.shape[2:]) if s_feats.dim() == 4 else None
            labels = self._label_locations(labels, size, {student.size(1), teacher.size(1)})
        drawn = torch.rand(batch, total, device=student.device).argsort(1)
        drawn = drawn[:, : self.num_locations]

        def take(x: Tensor) -> Tensor:
            """Pick the drawn locations, ``(B * n, ...)``; what is global is repeated."""
            x = x[:, None] if x.dim() == 1 else x
            index = drawn if x.size(1) == total else torch.zeros_like(drawn)
            return x[torch.arange(batch, device=x.device)[:, None], index].flatten(0, 1)

        columns = [None if x is None else take(x) for x in (student, teacher, sample_idx, labels)]
        if of_pixels:
            return self.crd(*columns, known=columns[-1] != self.ignore_index)
        return self.crd(*columns)

    def _label_locations(
        self, labels: Tensor, size: tuple[int, ...] | None, locations: set[int]
    ) -> Tensor:
        """Take the label at each location, ``(B, N)``, from label maps ``(B, H, W)``."""
        if size is None or labels.dim() != 3 or len(locations) > 1 or self.crd.bank is not None:
            raise ValueError(
                f'labels has shape {tuple(labels.shape)}, but label maps (B, H, W) need maps '
                "(B, D, H, W) on both sides and negatives='batch': a global feature and the row of "
                "a memory bank have no class of a pixel; use exclude='instance' without labels."
            )
        resized = F.interpolate(labels[:, None].double(), size, mode='nearest-exact')
        return resized.flatten(1).long()


def _locations(name: str, feats: Tensor) -> Tensor:
    """Return embeddings ``(B, N, D)``, of a global side ``(B, 1, D)``."""
    if feats.dim() not in (2, 3, 4):
        raise ValueError(
            f'{name} has shape {tuple(feats.shape)}, expected embeddings (B, D, H, W), (B, N, D) '
            'or (B, D); put a crd_plugin.DenseEmbeddingConnector in front of it.'
        )
    if feats.dim() == 4:
        return feats.flatten(2).transpose(1, 2)
    return feats if feats.dim() == 3 else feats[:, None]
