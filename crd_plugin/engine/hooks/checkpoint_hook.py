"""Checkpoints that survive a run killed while it saves."""

import inspect
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine import hooks
from mmengine.config import Config
from mmengine.dist import broadcast, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch import Tensor, nn

from crd_plugin.registry import HOOKS

from ._resumed_settings import batches, counts_epochs, follow_config

# MMEngine looks the storage of a checkpoint up by name.
_BACKEND = 'crd_plugin.whole_files'


@HOOKS.register_module()
class CheckpointHook(hooks.CheckpointHook):
    """``mmengine.hooks.CheckpointHook`` that has a whole latest checkpoint at any moment.

    * A checkpoint, and the file ``last_checkpoint`` that names the latest one, is written as
      ``*.part`` and then renamed; outdated ones are removed after that.
    * Every rank enters the ``gather_rows_for_checkpoint()`` of each module that has one, within
      which ``state_dict()`` on rank 0 holds the state of all ranks.
    * All ranks validate with the running statistics of batch norm that rank 0 saves.
    * A run that is resumed makes up a lost validation, and follows its config where the settings of
      optimizer, schedules or batches differ from the checkpoint's, which is logged.

    Args:
        **kwargs: Arguments of ``mmengine.hooks.CheckpointHook``.

    Raises:
        TypeError: If it has no such argument, or ``out_dir`` is not a path.
        ValueError: Before training, if it counts epochs and the training loop iterations, or the
            other way round: what it saved could not be resumed.
    """

    file_backend: Any
    _resumed = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # MMEngine hands the rest to the runner at the first save, which is an epoch late.
        for name in set(self.args) - set(inspect.signature(Runner.save_checkpoint).parameters):
            raise TypeError(f'CheckpointHook got an unexpected keyword argument {name!r}')
        if not isinstance(self.out_dir, (str, Path, type(None))):
            raise TypeError(f'out_dir is {self.out_dir!r}, expected the path of a folder.')

    def before_run(self, runner) -> None:
        """Compare what the hook counts with what the training loop counts."""
        other, unit = EpochBasedTrainLoop, 'epochs'
        if self.by_epoch:
            other, unit = IterBasedTrainLoop, 'iterations'
        if isinstance(runner._train_loop, other):
            raise ValueError(
                f'default_hooks.checkpoint.by_epoch is {self.by_epoch}, but the training loop '
                f'counts {unit}, so a run that is interrupted could not be resumed; set '
                f'by_epoch={not self.by_epoch}, and interval in {unit}.'
            )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Let a run that is resumed follow its config."""
        self._resumed = runner._resume and isinstance(runner._train_loop, BaseLoop)
        if not self._resumed:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        weights = checkpoint.get('state_dict') or {}
        for name, own in model.state_dict().items():
            saved = weights.get(name, own)
            # Loading would cast integers.
            if isinstance(saved, Tensor) and saved.is_floating_point() != own.is_floating_point():
                raise ValueError(
                    f'{name} is {saved.dtype} in the checkpoint, expected {own.dtype}: the file is '
                    'damaged; resume from an earlier checkpoint.'
                )
        follow_config(runner, checkpoint)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Save how the data is cut into batches."""
        checkpoint['batches'] = batches(runner)

    def before_train(self, runner) -> None:
        """Choose the storage, remove what a killed run left, and make up its last validation."""
        super().before_train(runner)
        # Assigning an attribute of a Config would be a setting.
        object.__setattr__(runner.cfg, '__class__', _FormattedOnce)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = dict(backend=_BACKEND)
            self.file_backend = _WholeFiles()
            if is_main_process():
                suffix = Path(self.filename_tmpl).suffix
                for partial in Path(self.out_dir).glob(f'*{suffix}.part'):
                    partial.unlink()
                Path(runner.work_dir, 'last_checkpoint.part').unlink(missing_ok=True)
        if self._resumed:
            self._resumed = False
            self._go_on(runner)

    def before_val_epoch(self, runner) -> None:
        """Give all ranks the running statistics of rank 0; training does not read them."""
        for module in runner.model.modules():
            if getattr(module, 'running_mean', None) is not None:
                for statistic in module.buffers(recurse=False):
                    broadcast(statistic)

    def after_val_epoch(self, runner, metrics: dict) -> None:
        """Note that the epoch is validated; save the checkpoint if it is the best."""
        if hasattr(self, 'file_backend'):
            runner.message_hub.update_info('last_validated', [runner.epoch, runner.iter])
        super().after_val_epoch(runner, metrics)

    def _go_on(self, runner) -> None:
        """Be where the resumed run was when it had validated its last epoch."""
        loop, unit = runner.train_loop, 'epoch' if counts_epochs(runner) else 'iter'
        step, end = getattr(loop, unit), getattr(loop, f'max_{unit}s')
        # A copied or moved work dir has its own best checkpoint.
        best = getattr(self, 'best_ckpt_path', None)
        if best:
            self.best_ckpt_path = self._path(Path(best).name)
        several = getattr(self, 'best_ckpt_path_dict', {})
        several.update({k: self._path(Path(path).name) for k, path in several.items() if path})
        if self.file_backend.isfile(self._path(step)):
            self.last_ckpt = self._path(step)
        validated = runner.message_hub.runtime_info.get('last_validated')
        if runner.val_loop is not None and validated != [runner.epoch, runner.iter]:
            loop._decide_current_val_interval()
            due = step % loop.val_interval == 0 or step == end
            if due and step >= max(loop.val_begin, 1):
                runner.logger.info(f'Making up the validation of {unit} {step}.')
                runner.val_loop.run()
        if step >= end:
            runner.logger.info(
                f'The run is finished: {unit} {step} of {end} is done; raise train_cfg.max_{unit}s '
                'to train on.'
            )

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
        """Save and remove as MMEngine's method does, which writes the pointer in place."""
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

    def _path(self, step: int | str) -> str:
        """Return the path of the checkpoint of a step, or of a named one."""
        name = step if isinstance(step, str) else self.filename_tmpl.format(step)
        return self.file_backend.join_path(self.out_dir, name)

    def _remove_outdated(self) -> None:
        """Remove outdated checkpoints, unless one was written again under the same name."""
        if isinstance(self.file_backend, _WholeFiles):
            several = getattr(self, 'best_ckpt_path_dict', {}).values()
            best = getattr(self, 'best_ckpt_path', None)
            self.file_backend.remove_outdated(kept={self.last_ckpt, best, *several})


class _FormattedOnce(Config):
    """A config whose text, which goes into every checkpoint, is formatted once: it takes 0.5 s."""

    @cached_property
    def pretty_text(self) -> str:
        """str: The config as Python code."""
        return super().pretty_text


@register_backend(_BACKEND)
class _WholeFiles(LocalBackend):
    """Local files that are written whole or not at all; outdated ones are removed later."""

    def __init__(self) -> None:
        self._outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file, in a new folder if need be."""
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
    except OSError as error:
        error.filename = str(path)  # a full disk is reported without
        raise
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
