"""Checkpoints that survive a run killed while it saves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine import hooks
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from torch import nn

from crd_plugin.registry import HOOKS

# MMEngine looks the storage of a checkpoint up by name.
_BACKEND = 'crd_plugin.whole_files'


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """``mmengine.hooks.CheckpointHook`` that has a whole latest checkpoint at any moment.

    * A checkpoint, and the file ``last_checkpoint`` that names the latest one, is written under
      a temporary name (``*.part``) and then renamed. Temporary files that a killed run left are
      removed when training starts.
    * Outdated checkpoints are removed after the new one is complete, not before.
    * A module whose state is split over the ranks may have a method
      ``gather_rows_for_checkpoint()`` that returns a context manager. Every rank enters it
      before rank 0 saves and leaves it afterwards; in between, ``state_dict()`` on rank 0 has to
      hold the state of all ranks.

    The config, which MMEngine writes into every checkpoint, is formatted once: that may take half a
    second. Storage other than local files is used as MMEngine does.

    Args:
        **kwargs: Arguments of ``mmengine.hooks.CheckpointHook``.
    """

    file_backend: Any

    def before_train(self, runner) -> None:
        """Choose the storage, and remove what a killed run left."""
        super().before_train(runner)
        object.__setattr__(runner.cfg, '__class__', _FormattedOnce)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=_BACKEND)
            self.file_backend = _WholeFiles()
            if is_main_process():
                suffix = Path(self.filename_tmpl).suffix
                for partial in Path(self.out_dir).glob(f'*{suffix}.part'):
                    partial.unlink()

    def _save_checkpoint(self, runner) -> None:
        """Save as planned; runs on every rank."""
        with _whole_state(runner.model):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """Save after a validation if it was the best; runs on every rank."""
        # `Runner.val()` without training saves nothing.
        if not self.save_best or not hasattr(self, 'file_backend'):
            return
        with _whole_state(runner.model):
            super()._save_best_checkpoint(runner, metrics)
        self._remove_outdated()

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Save, point to the checkpoint, remove the outdated one.

        Replaces MMEngine's method, which writes the pointer in place.
        """
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self._path(self.keep_ckpt_ids.popleft())
                if is_main_process() and self.file_backend.isfile(outdated):
                    self.file_backend.remove(outdated)
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            _write(os.path.join(runner.work_dir, 'last_checkpoint'), self.last_ckpt.encode())
        self._remove_outdated()

    def _path(self, step: int) -> str:
        """Return the path of the checkpoint of a step."""
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))

    def _remove_outdated(self) -> None:
        """Remove outdated checkpoints, unless one was written again under the same name."""
        best = getattr(self, 'best_ckpt_path', None)
        several = getattr(self, 'best_ckpt_path_dict', {})
        if isinstance(self.file_backend, _WholeFiles):
            self.file_backend.remove_outdated(kept={self.last_ckpt, best, *several.values()})


class _FormattedOnce(Config):
    """A config whose text is kept; assigning an attribute of a Config would be a setting."""

    @cached_property
    def pretty_text(self) -> str:
        """str: The config as Python code."""
        return super().pretty_text


@register_backend(_BACKEND)
class _WholeFiles(LocalBackend):
    """Local files that are written whole or not at all, and removed when it is time."""

    def __init__(self) -> None:
        self._outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file."""
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        _write(filepath, obj)

    def remove(self, filepath: str | Path) -> None:
        """Note that a file is outdated."""
        self._outdated.append(str(filepath))

    def remove_outdated(self, kept: set) -> None:
        """Remove the files that are outdated."""
        for path in set(self._outdated) - kept:
            super().remove(path)
        self._outdated.clear()


def _write(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name, then rename it."""
    partial = Path(f'{path}.part')
    try:
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # A rename may survive a power cut that the content does not.
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _whole_state(model: nn.Module) -> Iterator[None]:
    """Have the modules gather state that is split over the ranks."""
    with ExitStack() as stack:
        for module in model.modules():
            gather: Any = getattr(module, 'gather_rows_for_checkpoint', None)
            if gather is not None:
                stack.enter_context(gather())
        yield
