"""Heads that mmpretrain lacks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from ._numbers import count
from .recorders.sample_field_recorder import stack_field

__all__ = ['SegmentationHead']


@MODELS.register_module()
class SegmentationHead(BaseModule):
    """Classify every pixel: 3x3 convolution, batch norm, ReLU, 1x1 convolution, upsampling.

    The head of an ``mmpretrain.ImageClassifier`` without a neck; in a ``crd_plugin.LinearProbe`` it
    is trained on a frozen backbone.

    Args:
        in_channels (int): Channels of the backbone's last map.
        num_classes (int): Number of classes.
        hidden_channels (int): Channels between the convolutions. Defaults to 256.
        ignore_index (int): Value of unlabelled pixels, which add nothing to the loss. Defaults to
            255.
        init_cfg (dict | list[dict], optional): Initial weights. Defaults to None: those of torch.

    Raises:
        ValueError: If an argument or a label is out of range, or a sample has no label map.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_channels: int = 256,
        ignore_index: int = 255,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        in_channels = count('in_channels', in_channels)
        self.num_classes = count('num_classes', num_classes)
        self.ignore_index = ignore_index
        width = count('hidden_channels', hidden_channels)
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, num_classes, 1),
        )

    def forward(self, feats: Sequence[Tensor]) -> Tensor:
        """Compute scores ``(B, num_classes, H, W)`` of the last map, ``(B, C, H, W)``."""
        return self.layers(feats[-1])

    def loss(
        self, feats: Sequence[Tensor], data_samples: list[DataSample], **kwargs: Any
    ) -> dict[str, Tensor]:
        """Compute the mean cross-entropy of the pixels that ``gt_seg_map`` ``(H, W)`` labels."""
        target = stack_field(data_samples, 'gt_seg_map', feats[-1].device)
        assert target is not None
        target = target.long()
        labelled = target != self.ignore_index
        if target.is_cpu:  # Looking at numbers would wait for the GPU.
            wrong = target[labelled & ((target < 0) | (target >= self.num_classes))]
            if wrong.numel():
                raise ValueError(
                    f'gt_seg_map has the value {int(wrong[0])}, expected classes from 0 to '
                    f'{self.num_classes - 1}, or {self.ignore_index} for unlabelled pixels; set '
                    'num_classes and ignore_index of the head to those of the data set.'
                )
        scores = _upsample(self(feats), target.shape[1:])
        losses = F.cross_entropy(scores, target, ignore_index=self.ignore_index, reduction='sum')
        # An image without any label has no loss, not NaN.
        return dict(loss=losses / labelled.sum().clamp_min(1))

    @torch.no_grad()
    def predict(
        self, feats: Sequence[Tensor], data_samples: list[DataSample] | None = None
    ) -> list[DataSample]:
        """Predict ``pred_seg_map`` at the size ``img_shape`` of each sample, or of the map."""
        scores = self(feats)
        samples = data_samples or [DataSample() for _ in scores]
        for sample, score in zip(samples, scores):
            size = sample.get('img_shape', score.shape[1:])
            sample.pred_seg_map = _upsample(score[None], size)[0].argmax(0)
        return samples


def _upsample(scores: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(scores, tuple(size), mode='bilinear', align_corners=False)
