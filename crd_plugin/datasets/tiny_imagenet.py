"""Tiny-ImageNet-200 as its archive unpacks, no file moved."""

from mmengine.fileio import join_path, list_dir_or_file, list_from_file
from mmpretrain.datasets.custom import find_folders, get_samples

from crd_plugin.registry import DATASETS

from ._published import PublishedDataset


@DATASETS.register_module()
class TinyImageNet200(PublishedDataset):
    """200 classes of ImageNet at 64x64 pixels: 100,000 images to train and 10,000 to validate.

    The images of the test folder have no labels, so there is no such split. Each item is
    ``dict(img_path=str, gt_label=int)``; of a grey file ``LoadImageFromFile`` makes three channels.

    Class ``i`` is the ``i``-th WordNet id in alphabetical order, and training images are in that of
    torchvision's ``ImageFolder``, so teachers trained with it fit. Validation images are in the
    order of ``val_annotations.txt``. Classes are named by ``words.txt``, or by ``metainfo``.

    Source: Stanford CS231N, ``http://cs231n.stanford.edu/tiny-imagenet-200.zip`` (237 MB).

    Args:
        data_root (str): The folder ``tiny-imagenet-200``.
        split (str): 'train' or 'val'. Defaults to 'train'.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`.

    Raises:
        ValueError: If ``split`` is not one of these, or the files contradict each other.
        FileNotFoundError: If a file or folder is missing; the message says where to get the data.
    """

    SPLITS = ('train', 'val')
    SOURCE = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip (237 MB), unpack it, move no file'

    def list_samples(self) -> list[dict]:
        """List ``img_path`` and ``gt_label`` of each image of the split."""
        lines = list_from_file(join_path(self.data_root, 'wnids.txt'))
        wnids = sorted({*map(str.strip, lines)} - {''})  # a blank line is not a class
        labels = {wnid: label for label, wnid in enumerate(wnids)}
        if self.CLASSES is None:
            lines = list_from_file(join_path(self.data_root, 'words.txt'))
            words = dict(line.split('\t', 1) for line in lines if '\t' in line)
            self._metainfo['classes'] = tuple(words.get(wnid, wnid) for wnid in wnids)
        list_images = self._train_images if self.split == 'train' else self._val_images
        return [dict(img_path=path, gt_label=label) for path, label in list_images(labels)]

    def _train_images(self, labels: dict[str, int]) -> list[tuple[str, int]]:
        folder = join_path(self.data_root, 'train')
        unknown = sorted(set(find_folders(folder)[0]) - labels.keys())
        if unknown:
            raise ValueError(
                f'{folder} has {len(unknown)} folders that are not in wnids.txt, {unknown[0]} '
                f'among them; get it again from {self.SOURCE}.'
            )
        images, empty = get_samples(
            folder, labels, lambda name: name.lower().endswith(('.jpeg', '.jpg', '.png'))
        )
        if empty:
            raise FileNotFoundError(f'{folder}/{min(empty)} has no image')
        return [(join_path(folder, name), label) for name, label in images]

    def _val_images(self, labels: dict[str, int]) -> list[tuple[str, int]]:
        path = join_path(self.data_root, 'val/val_annotations.txt')
        folder = join_path(self.data_root, 'val/images')
        images = []
        for number, line in enumerate(list_from_file(path), start=1):
            name, wnid = [*line.split('\t'), ''][:2]
            if wnid not in labels:
                raise ValueError(
                    f'{path}, line {number} is {line!r}, expected a file name, a tab and an id '
                    f'that is in wnids.txt; get it again from {self.SOURCE}.'
                )
            images.append((name, labels[wnid]))
        found = set(list_dir_or_file(folder, list_dir=False))
        missing = [name for name, _ in images if name not in found]
        if missing:
            raise FileNotFoundError(
                f'{folder} lacks {len(missing)} images of val_annotations.txt, {missing[0]} among '
                'them (they must lie there as unpacked, not in folders)'
            )
        return [(join_path(folder, name), label) for name, label in images]
