"""Distillation in stages that train different parts by different losses."""

import inspect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from .frozen_teacher_distill import FrozenTeacherDistill, Samples


class Stage(NamedTuple):
    """What one stage computes and trains."""

    losses: dict[str, str]  # Name of each loss, and its method to call.
    student_loss: bool
    trainable: list[str]  # Paths of modules; ['']: all.
    frozen: list[str]


@MODELS.register_module()
class StagedDistill(FrozenTeacherDistill):
    """Distil in several stages, one after the other.

    Each stage says which losses are computed and which parts train. All other parts are frozen: no
    gradient, and eval mode. ``StagedTrainLoop`` switches the stages. A network that no loss of the
    stage reads is not run.

    Source: the initial stage of HobbitLong/RepDistiller, ``helper/pretrain.py``. Differs: there,
    teacher and student always run.

    Args:
        stages (list[dict]): Stages in order. Each has

            * ``name``: name of the stage in the loop's settings and in the log.
            * ``losses``: names from ``distill_losses``, or a dict that maps names to the method to
              call instead of ``forward``, with those of its arguments that the mapping of the loss
              has. Default: all losses.
            * ``without_losses``: names left out of them.
            * ``student_loss`` (bool): Whether the student's own loss counts. Default: True.
            * ``trainable``: paths of the modules that train. Default: all but the teacher. Without
              the student's own loss, what a backbone has behind its last stage (``tail_names``)
              stays frozen.
            * ``frozen``: paths of modules within them that do not train.
        *args, **kwargs: Arguments of ``FrozenTeacherDistill``.

    Raises:
        ValueError: If a stage names an unknown loss, method or module, or computes nothing.
        TypeError: If a stage is not described as above.
    """

    stage: str | None = None

    def __init__(self, *args, stages: Sequence[dict], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Not a dict: MMEngine sorts the keys of a config that it writes.
        if not isinstance(stages, (list, tuple)) or not stages:
            raise TypeError(
                f'stages is {stages!r}, expected a list with a dict for each stage, in order.'
            )
        # Parameters that a config freezes, as a backbone's frozen_stages, never train.
        self._ever_trained = {name for name, p in self.named_parameters() if p.requires_grad}
        self.stages: dict[str, Stage] = {}
        keys = inspect.signature(self._add_stage).parameters
        for given in stages:
            if not isinstance(given, dict) or not set(given) <= set(keys):
                raise TypeError(
                    f'stages has {given!r}, expected a dict with some of {tuple(keys)}.'
                )
            self._add_stage(**given)

    def set_stage(self, name: str) -> None:
        """Begin the stage of that name: choose what is computed, freeze what does not train."""
        if name not in self.stages:
            raise ValueError(f'There is no stage {name!r}, expected one of {tuple(self.stages)}.')
        self.stage = name
        trained = {id(parameter) for parameter in self._trained_parameters(self.stages[name])}
        for key, parameter in self.named_parameters():
            parameter.requires_grad_(key in self._ever_trained and id(parameter) in trained)
            parameter.grad = None  # It is another stage's.
        self.train(self.training)

    def active_losses(self) -> dict[str, str]:
        """Return the current stage's losses that have a mapping, and the method of each."""
        mappings, losses = self.distiller.loss_forward_mappings, self._current().losses
        return {name: method for name, method in losses.items() if name in mappings}

    def loss(self, batch_inputs: Tensor, data_samples: Samples = None) -> dict[str, Tensor]:
        """Compute the current stage's losses, ``student.*`` and ``distill.LOSS[_METHOD]``."""
        active = {} if self.distillation_stopped else self.active_losses()
        arguments = {name: self._arguments(name, method) for name, method in active.items()}
        records = [record for mapping in arguments.values() for record in mapping.values()]
        sides = {record['from_student'] for record in records}
        if self.distiller.deliveries.deliveries:
            sides = {True, False}
        with_loss = self.calculate_student_loss and self._current().student_loss
        if False in sides:
            self.run_teacher(batch_inputs, data_samples)
        losses = {}
        if True in sides or with_loss:
            result = self.run_student(batch_inputs, data_samples, with_loss)
            losses.update(add_prefix(result, 'student'))
        for name, method in active.items():
            module = self.distiller.distill_losses[name]
            given = {key: self.distiller.get_record(**one) for key, one in arguments[name].items()}
            if method == 'forward':  # by the module, whose hooks count
                losses[f'distill.{name}'] = module(**given)
            else:
                losses[f'distill.{name}_{method}'] = getattr(module, method)(**given)
        return losses

    def train(self, mode: bool = True) -> 'StagedDistill':
        """Set the mode of what trains in this stage; the rest is in eval mode."""
        super().train(mode)
        if self.stage is not None and mode:
            stage = self.stages[self.stage]
            if stage.trainable != ['']:
                self.architecture.eval()
                self.distiller.eval()
                for path in stage.trainable:
                    self.get_submodule(path).train()
            for module in self._frozen_modules(stage):
                module.eval()
        return self

    def _current(self) -> 'Stage':
        if self.stage is None:
            raise ValueError(
                f'The model has the stages {tuple(self.stages)}, but none was begun; train it with '
                "train_cfg=dict(type='crd_plugin.StagedTrainLoop', max_epochs=, stage_epochs=)."
            )
        return self.stages[self.stage]

    def _arguments(self, name: str, method: str) -> dict[str, dict]:
        """Return the records that the method of a loss is given, by argument."""
        mapping = self.distiller.loss_forward_mappings[name]
        if method == 'forward':
            return mapping
        known = inspect.signature(getattr(self.distiller.distill_losses[name], method)).parameters
        return {key: mapping[key] for key in known if key in mapping}

    def _trained_parameters(self, stage: Stage) -> Iterator[nn.Parameter]:
        frozen = {id(p) for module in self._frozen_modules(stage) for p in module.parameters()}
        for path in stage.trainable:
            yield from (p for p in self.get_submodule(path).parameters() if id(p) not in frozen)

    def _frozen_modules(self, stage: Stage) -> Iterator[nn.Module]:
        """Yield modules that do not train although their parents may."""
        yield self.teacher
        yield from map(self.get_submodule, stage.frozen)
        if not stage.student_loss:
            for module in self.architecture.modules():
                for name in getattr(module, 'tail_names', ()):
                    yield module.get_submodule(name)

    def _add_stage(
        self,
        name: str | None = None,
        losses: str | Sequence[str] | dict[str, str] | None = None,
        without_losses: str | Sequence[str] = (),
        student_loss: bool = True,
        trainable: str | Sequence[str] | None = None,
        frozen: str | Sequence[str] = (),
    ) -> None:
        """Check a stage of the config and add it."""
        if not isinstance(name, str) or name in self.stages:
            raise ValueError(
                f'stages has the name {name!r}, expected a different word for each stage, such as '
                "'init' and 'main'."
            )
        known, without = self.distiller.distill_losses, _listed(without_losses)
        losses = list(known) if losses is None else losses
        methods = losses if isinstance(losses, dict) else dict.fromkeys(_listed(losses), 'forward')
        for loss in (*methods, *without):
            if loss not in known:
                raise ValueError(
                    f'stages.{name}: unknown loss {loss!r}; distill_losses defines {tuple(known)}.'
                )
        methods = {loss: method for loss, method in methods.items() if loss not in without}
        for loss, method in methods.items():
            if not callable(getattr(known[loss], method, None)):
                raise ValueError(
                    f'stages.{name}.losses.{loss} is {method!r}, which is not a method of '
                    f'{type(known[loss]).__name__}.'
                )
        trains, held = _listed('' if trainable is None else trainable), _listed(frozen)
        for path in (*trains, *held):
            self._check_path(f'stages.{name}', path)
        stage = Stage(methods, student_loss, trains, held)
        if not methods and not student_loss:
            raise ValueError(
                f'stages.{name} computes nothing: it has no losses and student_loss=False.'
            )
        if not any(parameter.requires_grad for parameter in self._trained_parameters(stage)):
            raise ValueError(
                f'stages.{name} trains no parameter; name a module that has some in trainable.'
            )
        self.stages[name] = stage

    def _check_path(self, place: str, path: str) -> None:
        """Require that a path leads to a module of student or distiller."""
        try:
            self.get_submodule(path)
        except AttributeError as error:
            raise ValueError(
                f'{place} has {path!r}, which is not a module: {error}; the student is '
                '`architecture`, a loss `distiller.distill_losses.NAME`, a connector '
                '`distiller.connectors.NAME`.'
            ) from error
        if path.partition('.')[0] == 'teacher':
            raise ValueError(f'{place} has {path!r}; the teacher never trains here.')


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
