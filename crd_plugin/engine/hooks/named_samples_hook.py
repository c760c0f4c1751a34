"""Errors of data sets: a sample that cannot be read, images that are missing."""

from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook

from crd_plugin.datasets.sample_index import NamedRead, check_sources, find_sources
from crd_plugin.registry import HOOKS


@HOOKS.register_module()
class NamedSamplesHook(Hook):
    """Name the file of an image that cannot be read, of whatever data set.

    ``SampleIndexDataset`` does so itself. ``tools/train.py`` and ``tools/test.py`` add this hook.

    Args:
        complete (bool): Also refuse published data sets of which images are missing, for validation
            and testing; see ``SampleIndexDataset``, which checks the one for training. Defaults to
            False.

    Raises:
        ValueError: If images are missing.
    """

    def __init__(self, complete: bool = False) -> None:
        self.complete = complete

    def before_train(self, runner: Any) -> None:
        """Prepare the data set, before data workers copy it."""
        _name_samples(runner.train_dataloader.dataset)
        if self.complete and runner.val_loop is not None:
            check_sources(runner.val_dataloader.dataset)

    def before_val(self, runner: Any) -> None:
        """Prepare the data set, before data workers copy it."""
        _name_samples(runner.val_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        """Prepare the data set, before data workers copy it."""
        _name_samples(runner.test_dataloader.dataset)
        if self.complete:
            check_sources(runner.test_dataloader.dataset)


def _name_samples(dataset: Any) -> None:
    """Wrap the reading of every set of MMEngine in a data set or its wrappers."""
    for owner in find_sources(dataset).owners:
        if isinstance(owner, BaseDataset):
            owner.prepare_data = NamedRead(owner)
