"""Annotations of a batch as tensors, not as one object a sample."""

from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from mmpretrain.structures import DataSample
from torch import Tensor


class BatchSamples:
    """The data samples of a batch that was made as a whole.

    Stands where models get a list of ``DataSample``: it has a length, can be
    iterated and indexed, and then gives real data samples. They are made when
    first asked for, all at once and kept, so what is written into one stays.
    Until then the batch is a handful of tensors: building and preprocessing
    64 data samples one by one takes several times as long as cropping,
    flipping and normalising their images.

    It is no ``collections.abc.Sequence`` on purpose: data preprocessors and
    DDP would take such a thing apart sample by sample.

    Args:
        ids (Sequence[int]): Position of each sample in the data set.
        sample_idx (Tensor): The same, ``(B,)`` int64, where the images are.
        gt_label (Tensor, optional): Classes, ``(B,)`` int64. Defaults to
            None: the samples have no label.
        metainfo (Sequence[dict], optional): Further meta information, one
            dict a sample. Defaults to None.

    Raises:
        ValueError: If the lengths differ.
    """

    def __init__(
        self,
        ids: Sequence[int],
        sample_idx: Tensor,
        gt_label: Optional[Tensor] = None,
        metainfo: Optional[Sequence[Mapping[str, Any]]] = None,
    ) -> None:
        for name, value in dict(
            sample_idx=sample_idx, gt_label=gt_label, metainfo=metainfo
        ).items():
            if value is not None and len(value) != len(ids):
                raise ValueError(
                    f'{name} has {len(value)} entries for {len(ids)} ids; give one each.'
                )
        self._ids = ids
        self._metainfo = metainfo
        self._fields = dict(sample_idx=sample_idx)
        if gt_label is not None:
            self._fields['gt_label'] = gt_label
        self._samples: Optional[List[DataSample]] = None

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[DataSample]:
        return iter(self._made())

    def __getitem__(self, index: Any) -> Any:
        """One data sample, or a list of them for a slice."""
        return self._made()[index]

    @property
    def made(self) -> bool:
        """bool: Whether there are data samples, which may have changed."""
        return self._samples is not None

    def field(self, name: str) -> Optional[Tensor]:
        """A field of all samples without making data samples.

        Args:
            name (str): ``'sample_idx'``, ``'gt_label'`` or ``'gt_score'``.

        Returns:
            Tensor: ``(B, ...)``; None if there is none of this name, or if
            the data samples were made, since they may have been changed.
        """
        return None if self.made else self._fields.get(name)

    def set_gt_score(self, gt_score: Tensor) -> None:
        """Give the samples soft labels.

        Args:
            gt_score (Tensor): ``(B, C)`` float.

        Raises:
            ValueError: If it is not one row a sample.
        """
        if gt_score.dim() != 2 or len(gt_score) != len(self):
            raise ValueError(
                f'gt_score has shape {tuple(gt_score.shape)}, expected ({len(self)}, classes).'
            )
        self._fields['gt_score'] = gt_score
        if self.made:
            for sample, score in zip(self._samples, gt_score):
                sample.set_gt_score(score)

    def _made(self) -> List[DataSample]:
        if self._samples is None:
            labels = self._fields.get('gt_label')
            scores = self._fields.get('gt_score')
            parts: Dict[str, Sequence[Tensor]] = {}
            if labels is not None:
                parts['gt_label'] = labels.split(1)
            if scores is not None:
                parts['gt_score'] = scores.unbind()
            self._samples = [
                self._make(place, index, parts) for place, index in enumerate(self._ids)
            ]
        return self._samples

    def _make(self, place: int, index: int, parts: Dict[str, Sequence[Tensor]]) -> DataSample:
        meta = dict(self._metainfo[place]) if self._metainfo else {}
        meta['sample_idx'] = index
        if 'gt_score' in parts:
            meta['num_classes'] = len(parts['gt_score'][place])
        data = {name: values[place] for name, values in parts.items()}
        # Field by field, each one checked, takes six times as long. What is
        # written here is what a DataSample is pickled as.
        sample = DataSample.__new__(DataSample)
        sample.__dict__.update(_metainfo_fields=set(meta), _data_fields=set(data), **meta, **data)
        return sample
