"""Distillation in stages that train different parts by different losses."""

import inspect
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence

from mmengine.structures import BaseDataElement
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from .frozen_teacher_distill import FrozenTeacherDistill

_KEYS = ('name', 'losses', 'without_losses', 'student_loss', 'trainable', 'frozen')


class Stage(NamedTuple):
    """What one stage of training does.

    Attributes:
        losses (dict[str, str]): Losses of the distiller, and which of their
            methods is computed.
        student_loss (bool): Whether the student's own loss counts.
        trainable (list[str], optional): Modules that train; None: all.
        frozen (list[str]): Modules that do not train all the same.
    """

    losses: Dict[str, str]
    student_loss: bool
    trainable: Optional[List[str]]
    frozen: List[str]


@MODELS.register_module()
class StagedDistill(FrozenTeacherDistill):
    """``FrozenTeacherDistill`` in several stages, one after the other.

    Each stage says which losses are computed and which parts train. All other
    parts are frozen: no gradient, and eval mode, so that batch norm statistics
    stand still. ``StagedTrainLoop`` switches. A network that no loss of the
    stage looks at is not run: the teacher where only cross-entropy counts,
    the student while a paraphraser is trained.

    Source: the initial stage of HobbitLong/RepDistiller,
    ``helper/pretrain.py``. Differs: there, teacher and student always run.

    Args:
        stages (list[dict]): Stages in order. Each has

            * ``name``: by which the loop and the log call it.
            * ``losses``: names out of ``distill_losses``, or a dict that maps
              names to the method to be called instead of ``forward``, which
              is given those of its arguments that the mapping of the loss
              has. Default: all losses.
            * ``without_losses``: names left out of all. Losses that another
              config adds, as ``with_crd.py`` does, then act in this stage.
            * ``student_loss`` (bool): Whether the student's own loss counts.
              Default: True.
            * ``trainable``: paths of the modules that train. Default: all but
              the teacher. Without the student's own loss, what a backbone has
              behind its last stage (``tail_names``) stays frozen.
            * ``frozen``: paths of modules that do not train all the same.
        *args, **kwargs: Of ``FrozenTeacherDistill``.

    Raises:
        ValueError: If a stage names a loss, method or module that there is
            not, or has nothing to compute.
        TypeError: If a stage is not described as above.
    """

    def __init__(self, *args, stages: Sequence[dict], **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Not a dict: MMEngine sorts the keys of a config that it writes.
        if not isinstance(stages, (list, tuple)) or not stages:
            raise TypeError(
                f'stages is {stages!r}, expected a list with a dict for each stage, in order.'
            )
        # What a config, such as a backbone's frozen_stages, holds still.
        self._ever_trained = {
            name for name, parameter in self.named_parameters() if parameter.requires_grad
        }
        self.stages: Dict[str, Stage] = {}
        for given in stages:
            self._add_stage(given)
        self.stage: Optional[str] = None

    def set_stage(self, name: str) -> None:
        """Begin a stage: choose what is computed, freeze what does not train.

        Args:
            name (str): Out of ``stages``.

        Raises:
            ValueError: If there is no such stage.
        """
        if name not in self.stages:
            raise ValueError(f'There is no stage {name!r}, expected one of {tuple(self.stages)}.')
        self.stage = name
        trained = {id(parameter) for parameter in self._trained_parameters(self.stages[name])}
        for key, parameter in self.named_parameters():
            parameter.requires_grad_(key in self._ever_trained and id(parameter) in trained)
            # What is left of another stage belongs to its optimizer.
            parameter.grad = None
        self.train(self.training)

    def active_losses(self) -> Dict[str, str]:
        """Losses of this stage and the method of each.

        Returns:
            dict[str, str]: Without those that have no mapping.

        Raises:
            ValueError: If no stage was begun.
        """
        if self.stage is None:
            raise ValueError(
                f'The model has the stages {tuple(self.stages)}, but none was '
                "begun; train it with train_cfg=dict(type='crd_plugin."
                "StagedTrainLoop', max_epochs=..., stage_epochs=...), as "
                'configs/_base_/schedules/cifar_b64-30e-240e.py does.'
            )
        mappings = self.distiller.loss_forward_mappings
        return {
            name: method
            for name, method in self.stages[self.stage].losses.items()
            if name in mappings
        }

    def loss(
        self, batch_inputs: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> Dict[str, Tensor]:
        """Losses of this stage.

        Args:
            batch_inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement], optional): Annotations.

        Returns:
            dict[str, Tensor]: Losses under ``student.`` and ``distill.``; one
            that another method than ``forward`` computes has the method's
            name behind its own.
        """
        active = self.active_losses()
        if self.distillation_stopped:
            active = {}
        arguments = {name: self._arguments(name, method) for name, method in active.items()}
        sides = {
            record['from_student'] for mapping in arguments.values() for record in mapping.values()
        }
        counts = self.calculate_student_loss and self.stages[self.stage].student_loss
        delivering = bool(self.distiller.deliveries.deliveries)
        if False in sides or delivering:
            self.run_teacher(batch_inputs, data_samples)
        losses = {}
        if True in sides or counts or delivering:
            result = self.run_student(batch_inputs, data_samples, counts)
            losses.update(add_prefix(result, 'student'))
        for name, method in active.items():
            suffix = '' if method == 'forward' else f'_{method}'
            module = self.distiller.distill_losses[name]
            compute = module if not suffix else getattr(module, method)
            losses[f'distill.{name}{suffix}'] = compute(
                **{
                    key: self.distiller.get_record(**record)
                    for key, record in arguments[name].items()
                }
            )
        return losses

    def train(self, mode: bool = True) -> 'StagedDistill':
        """Set the mode of what trains in this stage; the rest is in eval."""
        super().train(mode)
        # The constructor of a parent may call this.
        stage = getattr(self, 'stages', {}).get(getattr(self, 'stage', None))
        if stage is None or not mode:
            return self
        if stage.trainable is not None:
            self.architecture.eval()
            self.distiller.eval()
            for path in stage.trainable:
                self.get_submodule(path).train()
        for module in self._frozen_modules(stage):
            module.eval()
        return self

    def _arguments(self, name: str, method: str) -> Dict[str, dict]:
        """Records that the method of a loss asks for."""
        mapping = self.distiller.loss_forward_mappings[name]
        if method == 'forward':
            return mapping
        known = inspect.signature(getattr(self.distiller.distill_losses[name], method)).parameters
        return {key: mapping[key] for key in known if key in mapping}

    def _trained_parameters(self, stage: Stage) -> Iterator[nn.Parameter]:
        """Parameters that train in a stage."""
        frozen = {
            id(parameter)
            for module in self._frozen_modules(stage)
            for parameter in module.parameters()
        }
        paths = [''] if stage.trainable is None else stage.trainable
        for path in paths:
            for parameter in self.get_submodule(path).parameters():
                if id(parameter) not in frozen:
                    yield parameter

    def _frozen_modules(self, stage: Stage) -> Iterator[nn.Module]:
        """Modules that do not train although their parents may."""
        yield self.teacher
        for path in stage.frozen:
            yield self.get_submodule(path)
        if not stage.student_loss:
            for module in self.architecture.modules():
                for name in getattr(module, 'tail_names', ()):
                    yield module.get_submodule(name)

    def _add_stage(self, given: dict) -> None:
        """Add a stage of the config, checked."""
        if not isinstance(given, dict) or not set(given) <= set(_KEYS):
            raise TypeError(
                f'stages has {given!r}, expected a dict with a name and some of {_KEYS[1:]}.'
            )
        name = given.get('name')
        if not isinstance(name, str) or name in self.stages:
            raise ValueError(
                f'stages has the name {name!r}, expected a word of its own '
                "for each, such as 'init' and 'main'."
            )
        known = self.distiller.distill_losses
        without = _listed(given.get('without_losses', []))
        losses = given.get('losses')
        if isinstance(losses, str):
            losses = [losses]
        if losses is None:
            losses = [loss for loss in known if loss not in without]
        elif without:
            raise ValueError(
                f'stages.{name} has losses and without_losses; give the '
                'former to take only these, or the latter to take all others.'
            )
        if not isinstance(losses, dict):
            losses = {loss: 'forward' for loss in losses}
        for loss in (*losses, *without):
            if loss not in known:
                raise ValueError(
                    f'stages.{name} names the loss {loss!r}, which '
                    f'distill_losses has not; there are {tuple(known)}.'
                )
        for loss, method in losses.items():
            self._check_method(name, loss, method)
        stage = Stage(
            losses,
            bool(given.get('student_loss', True)),
            _listed(given.get('trainable')),
            _listed(given.get('frozen', [])),
        )
        if not losses and not stage.student_loss:
            raise ValueError(
                f'stages.{name} computes nothing: it has no losses and student_loss=False.'
            )
        self._check_modules(name, stage)
        self.stages[name] = stage

    def _check_method(self, stage: str, loss: str, method: str) -> None:
        """There is such a method, and the mapping has its arguments."""
        module = self.distiller.distill_losses[loss]
        function = getattr(module, method, None)
        if not callable(function):
            raise ValueError(
                f'stages.{stage}.losses.{loss} is {method!r}, which is no '
                f'method of {type(module).__name__}.'
            )
        mapping = self.distiller.loss_forward_mappings.get(loss)
        if mapping is None or method == 'forward':
            return  # MMRazor and the dry run check these.
        missing = [
            key
            for key, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty and key not in mapping
        ]
        if missing:
            raise ValueError(
                f'stages.{stage}.losses.{loss}: {method} of '
                f'{type(module).__name__} needs {", ".join(missing)}; add it '
                f'to loss_forward_mappings.{loss}.'
            )

    def _check_modules(self, name: str, stage: Stage) -> None:
        """All paths lead to modules of student or distiller."""
        for key in ('trainable', 'frozen'):
            for path in getattr(stage, key) or ():
                try:
                    self.get_submodule(path)
                except AttributeError as error:
                    raise ValueError(
                        f'stages.{name}.{key} has {path!r}, which is no '
                        f'module: {error}; the student is `architecture`, a '
                        'loss `distiller.distill_losses.NAME`, a connector '
                        '`distiller.connectors.NAME`.'
                    ) from error
                if path.partition('.')[0] == 'teacher':
                    raise ValueError(
                        f'stages.{name}.{key} has {path!r}; the teacher never trains here.'
                    )
        if not any(parameter.requires_grad for parameter in self._trained_parameters(stage)):
            raise ValueError(
                f'stages.{name} trains no parameter; name a module that has some in trainable.'
            )


def _listed(paths: Optional[Sequence[str]]) -> Optional[List[str]]:
    """One name or several as a list."""
    if paths is None:
        return None
    return [paths] if isinstance(paths, str) else list(paths)
