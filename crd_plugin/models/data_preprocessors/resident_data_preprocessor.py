"""Data preprocessor that leaves the labels of a batch in one tensor."""

from mmpretrain.models.utils import ClsDataPreprocessor
from torch import Tensor
from torch.nn import functional as F

from crd_plugin.registry import MODELS
from crd_plugin.structures import BatchSamples


@MODELS.register_module()
class ResidentDataPreprocessor(ClsDataPreprocessor):
    """``mmpretrain.ClsDataPreprocessor`` for batches of ``ResidentDataset``.

    The images go through the original's own code. The labels do not: it
    takes them out of the data samples, joins them, splits them and writes
    them back, one by one. Here they stay one tensor, which one-hot labels
    (``to_onehot``) and batch augmentations such as mixup are made from. A
    batch of the plain data loader is handed to the original as it is.

    Args:
        *args, **kwargs: Of ``mmpretrain.ClsDataPreprocessor``.

    Raises:
        ValueError: If one-hot labels are asked for without labels or without
            ``num_classes``.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise the images, and mix them where that is configured.

        Args:
            data (dict): ``inputs`` and ``data_samples`` of a batch.
            training (bool): Whether to use batch augmentations. Defaults to
                False.

        Returns:
            dict: ``inputs`` ``(B, C, H, W)`` float32 and ``data_samples``.
        """
        samples = data.get('data_samples')
        if not isinstance(samples, BatchSamples) or samples.made:
            return super().forward(data, training)
        inputs = super().forward(dict(inputs=data['inputs']))['inputs']
        if self.to_onehot:
            score = self._one_hot(samples)
            if training and self.batch_augments is not None:
                inputs, score = self.batch_augments(inputs, score)
            samples.set_gt_score(score)
        return dict(inputs=inputs, data_samples=samples)

    def _one_hot(self, samples: BatchSamples) -> Tensor:
        """Labels as ``(B, num_classes)`` int64."""
        labels = samples.field('gt_label')
        if labels is None:
            raise ValueError(
                'to_onehot and batch_augments need labels, but the samples '
                'have no gt_label; leave both out of data_preprocessor.'
            )
        if self.num_classes is None:
            raise ValueError(
                'to_onehot and batch_augments need num_classes, but '
                'data_preprocessor has none; set it.'
            )
        return F.one_hot(labels.to(self.device), self.num_classes)
