"""Training in stages: one config, one command, one run."""

from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import nn

from crd_plugin.registry import LOOPS


@LOOPS.register_module()
class StagedTrainLoop(EpochBasedTrainLoop):
    """Train a model through its stages, epoch by epoch.

    At the first epoch of a stage the loop tells the model, which then computes other losses and
    trains other parts, and clears the state of the optimizer (momentum). The stage follows from the
    epoch alone, so a run resumes in any stage. ``param_scheduler`` counts all epochs.

    Source: HobbitLong/RepDistiller, ``train_student.py`` and ``helper/pretrain.py``, which use one
    optimizer per stage.

    Args:
        runner (Runner): The runner; its model has stages (``crd_plugin.StagedDistill``).
        dataloader (DataLoader | dict): The training data of all stages.
        max_epochs (int): Epochs of all stages together.
        stage_epochs (dict[str, int]): Epochs of each stage but the last, by its name; 0 leaves it
            out.
        val_begin (int, optional): First epoch, counted from 1, that ends with a validation.
            Defaults to None: the first of the last stage; before, the classifier is untrained.
        val_interval (int): Epochs between validations. Defaults to 1.
        **kwargs: Further arguments of ``EpochBasedTrainLoop``.

    Raises:
        ValueError: If the model has no stages or other ones, no epoch is left for the last one, or
            a distributed model would wait for parameters that a stage leaves out.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_epochs: int,
        stage_epochs: dict[str, int],
        val_begin: int | None = None,
        val_interval: int = 1,
        **kwargs,
    ) -> None:
        self.spans = split_epochs(_unwrap(runner.model), max_epochs, stage_epochs)
        # An attribute of DistributedDataParallel only.
        if getattr(runner.model, 'find_unused_parameters', True) is False:
            raise ValueError(
                'find_unused_parameters is False, but a stage leaves parameters out, for which '
                'the processes would wait; set find_unused_parameters = True in the config (or in '
                'its model_wrapper_cfg).'
            )
        if val_begin is None:
            val_begin = [*self.spans.values()][-1].start + 1
        super().__init__(runner, dataloader, max_epochs, val_begin, val_interval, **kwargs)

    def run_epoch(self) -> None:
        """Train one epoch, in the stage that it belongs to."""
        number = 1 + sum(self.epoch >= span.stop for span in self.spans.values())
        name, span = [*self.spans.items()][number - 1]
        if _unwrap(self.runner.model).stage != name or self.epoch == span.start:
            self._enter(number, name, span)
        self.runner.message_hub.update_scalar('train/stage', number)
        super().run_epoch()

    def _enter(self, number: int, name: str, span: range) -> None:
        """Begin a stage, or continue it after resuming."""
        model = _unwrap(self.runner.model)
        model.set_stage(name)
        if self.epoch == span.start:
            self.runner.optim_wrapper.optimizer.state.clear()
            # The log would keep showing the losses of the previous stage.
            scalars = self.runner.message_hub.log_scalars
            for key in [key for key in scalars if key.startswith('train/') and 'loss' in key]:
                del scalars[key]
        losses = ', '.join(model.active_losses()) or 'none'
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.runner.logger.info(
            f'Stage {number} of {len(self.spans)}, "{name}": epochs {span.start + 1} to '
            f'{span.stop}; losses of the distiller: {losses}; {trained:,} parameters train.'
        )


def split_epochs(
    model: nn.Module, max_epochs: int, stage_epochs: dict[str, int]
) -> dict[str, range]:
    """Divide the epochs, counted from 0, among the stages of a model; return those with some."""
    stages: list[str] = list(getattr(model, 'stages', None) or ())
    if not stages:
        raise ValueError(
            'StagedTrainLoop trains a model with stages, such as crd_plugin.StagedDistill; '
            f'{type(model).__name__} has none. Use a schedule without stage_epochs.'
        )
    *first, last = stages
    if set(stage_epochs) != set(first):
        raise ValueError(
            f'train_cfg.stage_epochs has {list(stage_epochs)}, but the model has the stages '
            f'{stages}; give the epochs of all but the last.'
        )
    spans, begin = {}, 0
    for name in first:
        epochs = stage_epochs[name]
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(
                f'train_cfg.stage_epochs.{name} is {epochs!r}, expected a number of epochs (0 '
                'leaves the stage out).'
            )
        spans[name] = range(begin, begin + epochs)
        begin += epochs
    if begin >= max_epochs:
        raise ValueError(
            f'train_cfg.max_epochs is {max_epochs}, of which stage_epochs takes {begin}; no epoch '
            f'is left for the last stage, "{last}"; give fewer to the others '
            '(train_cfg.stage_epochs.NAME), or more in all.'
        )
    spans[last] = range(begin, max_epochs)
    return {name: span for name, span in spans.items() if span}


def _unwrap(model: nn.Module) -> Any:
    """Return the model inside DistributedDataParallel."""
    return model.module if is_model_wrapper(model) else model
