"""Tiny-ImageNet-200 as its archive unpacks, no file moved."""

from __future__ import annotations

from mmengine.fileio import join_path, list_dir_or_file, list_from_file
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.base_dataset import expanduser
from mmpretrain.datasets.custom import find_folders, get_samples

from crd_plugin.registry import DATASETS

_URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'


@DATASETS.register_module()
class TinyImageNet200(BaseDataset):
    """200 classes of ImageNet at 64x64 pixels: 100,000 images to train and 10,000 to validate.

    Each class has 500 training and 50 validation images; the images of the test folder have no
    labels, so there is no such split. Some files are grey: load them with ``LoadImageFromFile``,
    which makes three channels of one. Each item is ``dict(img_path=str, gt_label=int)``.

    Class ``i`` is the ``i``-th WordNet id in alphabetical order, whatever the order in
    ``wnids.txt``, as in torchvision's ``ImageFolder``; so teachers trained with that (those of
    kaiqi123/CKTF, say) fit. Training images are in the order of ``ImageFolder`` too, validation
    images in that of ``val_annotations.txt``.

    Source: Stanford CS231N, ``http://cs231n.stanford.edu/tiny-imagenet-200.zip`` (237 MB), which
    holds::

        tiny-imagenet-200
        ├── wnids.txt                 one WordNet id per line
        ├── words.txt                 <wnid> <tab> <names>
        ├── train/<wnid>/images       <wnid>_<number>.JPEG
        └── val
            ├── val_annotations.txt   <file> <tab> <wnid> <tab> <box>
            └── images                val_<number>.JPEG

    Args:
        data_root (str): The folder ``tiny-imagenet-200``.
        split (str): 'train' or 'val'. Defaults to 'train'.
        metainfo (dict, optional): Extra meta information. ``classes`` in it replaces the names of
            ``words.txt``. Defaults to None.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`, ``pipeline``,
            ``indices`` and ``test_mode`` among them.

    Raises:
        ValueError: If ``split`` is not one of these, or the files contradict each other.
        FileNotFoundError: If a file or folder is missing; the message says where to get the data.
    """

    def __init__(
        self, data_root: str, split: str = 'train', metainfo: dict | None = None, **kwargs
    ) -> None:
        if split not in ('train', 'val'):
            raise ValueError(
                f"split must be 'train' or 'val', but got {split!r}; the test images have no "
                'labels.'
            )
        self.split = split
        super().__init__(
            ann_file='val/val_annotations.txt' if split == 'val' else '',
            metainfo=metainfo,
            data_root=expanduser(data_root),
            data_prefix='val/images' if split == 'val' else 'train',
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """List ``img_path`` and ``gt_label`` of each image of the split."""
        try:
            wnids = sorted(list_from_file(join_path(self.data_root, 'wnids.txt')))
            labels = {wnid: label for label, wnid in enumerate(wnids)}
            if self.CLASSES is None:
                self._metainfo['classes'] = self._class_names(wnids)
            list_images = self._train_images if self.split == 'train' else self._val_images
            images = list_images(labels)
        except FileNotFoundError as error:
            problem = f'{error.filename} is missing' if error.filename else error
            raise FileNotFoundError(
                f'{problem}, so data_root={self.data_root!r} is not Tiny-ImageNet-200. Download '
                f'{_URL} (237 MB), unpack it, and let data_root name its folder '
                'tiny-imagenet-200, whose files stay where they are.'
            ) from error
        return [
            dict(img_path=join_path(self.img_prefix, name), gt_label=label)
            for name, label in images
        ]

    def extra_repr(self) -> list[str]:
        """Return the lines that ``repr`` adds: the split and its folder."""
        return [f'Split: \t{self.split}', f'Root: \t{self.data_root}']

    def _class_names(self, wnids: list[str]) -> tuple[str, ...]:
        lines = list_from_file(join_path(self.data_root, 'words.txt'))
        words = dict(line.split('\t', 1) for line in lines if '\t' in line)
        return tuple(words.get(wnid, wnid) for wnid in wnids)

    def _train_images(self, labels: dict[str, int]) -> list[tuple[str, int]]:
        unknown = sorted(set(find_folders(self.img_prefix)[0]) - labels.keys())
        if unknown:
            raise ValueError(
                f'{self.img_prefix} has {len(unknown)} folders that are not in wnids.txt, '
                f'{unknown[0]} among them; unpack {_URL} again.'
            )
        images, empty = get_samples(
            self.img_prefix, labels, lambda name: name.lower().endswith(('.jpeg', '.jpg', '.png'))
        )
        if empty:
            raise FileNotFoundError(f'{self.img_prefix}/{min(empty)} has no image')
        return images

    def _val_images(self, labels: dict[str, int]) -> list[tuple[str, int]]:
        images = []
        for number, line in enumerate(list_from_file(self.ann_file), start=1):
            name, _, rest = line.partition('\t')
            wnid = rest.partition('\t')[0]
            if wnid not in labels:
                raise ValueError(
                    f'{self.ann_file}, line {number} is {line!r}, expected a file name, a tab and '
                    f'an id that is in wnids.txt; download it again from {_URL}.'
                )
            images.append((name, labels[wnid]))
        found = set(list_dir_or_file(self.img_prefix, list_dir=False))
        missing = [name for name, _ in images if name not in found]
        if missing:
            raise FileNotFoundError(
                f'{self.img_prefix} lacks {len(missing)} images of val_annotations.txt, '
                f'{missing[0]} among them (they must lie there as unpacked, not in folders)'
            )
        return images
