"""Tiny-ImageNet-200 as its archive unpacks, nothing moved."""

from typing import Dict, List, Optional

from mmengine.fileio import get_file_backend, get_text, isdir, isfile, join_path
from mmpretrain.datasets import BaseDataset
from mmpretrain.datasets.base_dataset import expanduser

from crd_plugin.registry import DATASETS

_URL = 'http://cs231n.stanford.edu/tiny-imagenet-200.zip'
_EXTENSIONS = ('.jpeg', '.jpg', '.png')
_LAYOUT = """
    wnids.txt
    words.txt
    train/<wnid>/images/<wnid>_<number>.JPEG
    val/val_annotations.txt
    val/images/val_<number>.JPEG"""


@DATASETS.register_module()
class TinyImageNet200(BaseDataset):
    """200 classes of ImageNet at 64x64 pixels: 100,000 and 10,000 images.

    Each class has 500 images to train on and 50 to validate on; the images
    of the test folder have no labels, so there is no such split. Some files
    are grey: load them with ``LoadImageFromFile``, which makes three channels
    of one. Each item is ``dict(img_path=str, gt_label=int)``.

    Class ``i`` is the ``i``-th WordNet id in alphabetical order, whatever the
    order in ``wnids.txt``. That is what torchvision's ``ImageFolder`` makes
    of the folders, so teachers trained with it (those of kaiqi123/CKTF, say)
    fit. Training images come in the order of ``ImageFolder`` too, validation
    images as ``val_annotations.txt`` lists them.

    Source: Stanford CS231N, ``http://cs231n.stanford.edu/
    tiny-imagenet-200.zip`` (237 MB), which holds::

        tiny-imagenet-200
        ├── wnids.txt                 one WordNet id a line
        ├── words.txt                 <wnid> <tab> <names>
        ├── train/<wnid>/images       <wnid>_<number>.JPEG
        └── val
            ├── val_annotations.txt   <file> <tab> <wnid> <tab> <box>
            └── images                val_<number>.JPEG

    Args:
        data_root (str): The folder ``tiny-imagenet-200``.
        split (str): 'train' or 'val'. Defaults to 'train'.
        metainfo (dict, optional): Extra meta information. ``classes`` in it
            replaces the names of ``words.txt``. Defaults to None.
        **kwargs: Other arguments of :class:`mmpretrain.datasets.BaseDataset`,
            ``pipeline``, ``indices`` and ``test_mode`` among them.

    Raises:
        ValueError: If an argument is out of range, or the files contradict
            each other: folders that ``wnids.txt`` does not name, a broken
            line.
        FileNotFoundError: If a file or folder is missing; it tells where to
            get the data.
    """

    def __init__(
        self, data_root: str, split: str = 'train', metainfo: Optional[dict] = None, **kwargs
    ) -> None:
        if split not in ('train', 'val'):
            raise ValueError(
                f"split must be 'train' or 'val', but got {split!r}; the test "
                'images have no labels.'
            )
        if not data_root:
            raise ValueError(
                f'data_root must be the folder tiny-imagenet-200, but got '
                f'{data_root!r}; unpack {_URL} and name its folder.'
            )
        self.split = split
        super().__init__(
            ann_file='val/val_annotations.txt' if split == 'val' else '',
            metainfo=metainfo,
            data_root=expanduser(data_root),
            data_prefix='val/images' if split == 'val' else 'train',
            **kwargs,
        )

    def load_data_list(self) -> List[dict]:
        """List the images of the split.

        Returns:
            list[dict]: ``img_path`` str and ``gt_label`` int in [0, 200).
        """
        labels = self._read_wnids()
        self._name_classes(labels)
        if self.split == 'train':
            return self._train_images(labels)
        return self._val_images(labels)

    def extra_repr(self) -> List[str]:
        """Lines that ``repr`` adds: the split and its folder."""
        return [f'Split: \t{self.split}', f'Root: \t{self.data_root}']

    def _read_wnids(self) -> Dict[str, int]:
        path = join_path(self.data_root, 'wnids.txt')
        wnids = [line.strip() for line in self._lines(path) if line.strip()]
        if not wnids or len(set(wnids)) != len(wnids):
            raise ValueError(
                f'{path} has {len(wnids)} lines and {len(set(wnids))} '
                f'different ids, expected 200 of each; get it anew from '
                f'{_URL}.'
            )
        return {wnid: label for label, wnid in enumerate(sorted(wnids))}

    def _name_classes(self, labels: Dict[str, int]) -> None:
        if self.CLASSES is None:
            words = dict(
                line.rstrip().split('\t', 1)
                for line in self._lines(join_path(self.data_root, 'words.txt'))
                if '\t' in line
            )
            self._metainfo['classes'] = tuple(words.get(wnid, wnid) for wnid in labels)
        elif len(self.CLASSES) != len(labels):
            raise ValueError(
                f'classes has {len(self.CLASSES)} names, but wnids.txt has '
                f'{len(labels)} ids; give one name an id, or leave it out.'
            )

    def _train_images(self, labels: Dict[str, int]) -> List[dict]:
        found = self._list(self.img_prefix, folders=True)
        missing = sorted(labels.keys() - found)
        unknown = sorted(found - labels.keys())
        if missing or unknown:
            raise ValueError(
                f'The folders of {self.img_prefix} are not those of '
                f'wnids.txt: {_some(missing)} missing, {_some(unknown)} '
                f'unknown. Unpack {_URL} anew.'
            )
        data_list = []
        for wnid, label in labels.items():
            folder = join_path(self.img_prefix, wnid, 'images')
            names = self._list(folder)
            if not names:
                raise FileNotFoundError(self._advice(f'{folder} has no image'))
            data_list += [
                dict(img_path=join_path(folder, name), gt_label=label) for name in sorted(names)
            ]
        return data_list

    def _val_images(self, labels: Dict[str, int]) -> List[dict]:
        lines = self._lines(self.ann_file)
        found = self._list(self.img_prefix)
        data_list, missing = [], []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, wnid = (line.split('\t') + [''])[:2]
            if wnid.strip() not in labels:
                raise ValueError(
                    f'{self.ann_file}, line {number} is {line!r}, expected '
                    'a file name, a tab and an id that is in wnids.txt; get '
                    f'it anew from {_URL}.'
                )
            if name not in found:
                missing.append(name)
            data_list.append(
                dict(img_path=join_path(self.img_prefix, name), gt_label=labels[wnid.strip()])
            )
        if missing:
            raise FileNotFoundError(
                self._advice(
                    f'{self.img_prefix} lacks {_some(missing)} of '
                    'val_annotations.txt; it must hold all images '
                    'as unpacked, not sorted into folders'
                )
            )
        return data_list

    def _lines(self, path: str) -> List[str]:
        if not isfile(path):
            raise FileNotFoundError(self._advice(f'{path} is missing'))
        return get_text(path).splitlines()

    def _list(self, folder: str, folders: bool = False) -> set:
        if not isdir(folder):
            raise FileNotFoundError(self._advice(f'{folder} is missing'))
        backend = get_file_backend(folder, enable_singleton=True)
        names = backend.list_dir_or_file(folder, list_dir=folders, list_file=not folders)
        return {
            name
            for name in names
            if not name.startswith('.') and (folders or name.lower().endswith(_EXTENSIONS))
        }

    def _advice(self, problem: str) -> str:
        return (
            f'{problem}, so data_root={self.data_root!r} is not '
            f'Tiny-ImageNet-200. Download {_URL} (237 MB), unpack it, and '
            'let data_root name its folder tiny-imagenet-200, which '
            f'holds:{_LAYOUT}'
        )


def _some(names: List[str]) -> str:
    """``3 (a, b, ...)``."""
    if not names:
        return '0'
    return f'{len(names)} ({", ".join(names[:2])}{", ..." if len(names) > 2 else ""})'
