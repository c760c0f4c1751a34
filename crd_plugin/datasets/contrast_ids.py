"""Ids of positives and negatives, drawn as the published data sets draw them."""

import numpy as np
import torch
from torch import Tensor

from crd_plugin.models._numbers import count


class ContrastIds:
    """Draw the ids of a positive and of K negatives of a sample; see ``SampleIndexDataset``.

    Source: HobbitLong/RepDistiller, ``dataset/cifar100.py``, class CIFAR100InstanceSample.
    Behaviour matched: the same calls of NumPy's global generator, hence the same ids: without
    replacement unless K exceeds the pool, which ``percent`` cuts once to
    ``int(len(negatives of class 0) * percent)`` ids. Differs: classes may have unequal sizes, and
    labels that nothing can be drawn from are refused.
    """

    def __init__(
        self, labels: np.ndarray, num_negatives: int, percent: float = 1.0, mode: str = 'exact'
    ) -> None:
        if mode not in ('exact', 'relax'):
            raise ValueError(f"mode must be 'exact' or 'relax', but got {mode!r}.")
        self.num_negatives = count('num_negatives', num_negatives)
        self.mode = mode
        self.labels = labels
        # Ids by class. The negatives of a class are those of the other classes, in their order.
        counts = np.bincount(labels)
        self.positives = np.split(np.argsort(labels, kind='stable'), np.cumsum(counts)[:-1])
        self._kept: list[np.ndarray] | None = None
        if counts.max() == len(labels):
            raise ValueError(
                f'num_negatives needs at least two classes, but all {len(labels)} samples are of '
                f"class {labels[0]}; leave num_negatives out and use exclude='instance' in the "
                'loss.'
            )
        if 0 < percent < 1:
            pools = [self.negatives(label) for label in range(len(self.positives))]
            kept = int(len(pools[0]) * percent)
            if kept == 0:
                raise ValueError(
                    f'percent={percent} keeps none of the {len(pools[0])} negatives of class 0; '
                    'raise it, or use 1.0 for all.'
                )
            self._kept = [np.random.permutation(pool)[:kept] for pool in pools]

    def negatives(self, label: int) -> np.ndarray:
        """Return the ids that negatives of a class are drawn from."""
        if self._kept is not None:
            return self._kept[label]
        return np.concatenate([*self.positives[:label], *self.positives[label + 1 :]])

    def draw(self, sample_idx: int) -> Tensor:
        """Draw the ids of the positive and of the negatives of a sample, ``(1 + K,)`` int64."""
        label = self.labels[sample_idx]
        positive = sample_idx
        if self.mode == 'relax':
            positive = np.random.choice(self.positives[label], 1)[0]
        pool = self.negatives(label)
        replace = self.num_negatives > len(pool)
        negatives = np.random.choice(pool, self.num_negatives, replace=replace)
        return torch.from_numpy(np.concatenate([[positive], negatives]).astype(np.int64))
