"""CoCoRD: three views, a slow student and a queue of teacher keys."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmrazor.registry import MODELS as RAZOR_MODELS
from torch import Tensor, nn

from crd_plugin.ops import move_averages
from crd_plugin.registry import MODELS

from ..data_preprocessors import MultiViewPreprocessor
from ..losses.cocord_loss import CoCoRDLoss
from .frozen_teacher_distill import FrozenTeacherDistill, Samples


@MODELS.register_module()
class CoCoRDDistill(FrozenTeacherDistill):
    """Distil by CoCoRD from a frozen teacher, with a slow copy of the student.

    One step, given three views of each image:

    1. the teacher sees the third view, in eval mode and without gradient;
    2. the student sees the first view, on which its own loss is computed, then the second;
    3. the slow student, the moving average of the student's parameters, sees the second view,
       then the first, without gradient;
    4. ``CoCoRDLoss`` compares the recorded features.

    The recorders that ``CoCoRDLoss`` reads hold four records: ``record_idx`` 0 and 1 are the
    student's first and second view, 2 and 3 the slow student's second and first. Any other loss,
    such as KD, reads ``record_idx=0``.

    Only parameters are averaged: the slow student has running statistics of its own. Those of both
    students move twice per step; the teacher's never.

    Source: Fu et al., Contrastive Consistent Representation Distillation, BMVC 2023; behaviour
    matched: ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d.

    Args:
        architecture (dict | BaseModel): The student.
        distiller (dict): Config with one ``crd_plugin.CoCoRDLoss`` in ``distill_losses``, see
            ``configs/_base_/distillers/cocord.py``.
        **kwargs: Further arguments of ``FrozenTeacherDistill``.

    Raises:
        ValueError: If there is not exactly one ``CoCoRDLoss``, no features are mapped to it, or
            the data preprocessor mixes images.
    """

    # Views per image that the training pipeline has to give, and the loss they are for.
    num_views = 3
    loss_class = CoCoRDLoss

    def __init__(self, architecture: BaseModel | dict, distiller: dict, **kwargs) -> None:
        if isinstance(architecture, dict):
            architecture = RAZOR_MODELS.build(architecture)
        # Copied before recorders register their hooks on the student.
        slow_student = copy.deepcopy(architecture)
        super().__init__(architecture=architecture, distiller=distiller, **kwargs)
        self._loss_name, recorders = self._find_loss()
        self.data_preprocessor: Any = MultiViewPreprocessor(self.data_preprocessor)
        self.slow_student = slow_student.requires_grad_(False)
        # It is copied from the student, so its own initialisation would be wasted.
        self.slow_student._is_init = True
        for module in self.slow_student.modules():
            if not self.module_inplace and hasattr(module, 'inplace'):
                module.inplace = False  # It would overwrite a record.
        self._copy_student()
        for name in recorders:
            self.distiller.student_recorders.get_recorder(name).initialize(self.slow_student)
        self._speed_up(self.slow_student, 'slow student')

    @property
    def cocord_loss(self) -> CoCoRDLoss:
        """CoCoRDLoss: The loss in the distiller."""
        return self.distiller.distill_losses[self._loss_name]

    def run_teacher(self, batch_inputs: Any, data_samples: Samples = None) -> None:
        """Run the teacher on the third of three views, each ``(B, C, H, W)``, and record."""
        super().run_teacher(self._views(batch_inputs)[2], data_samples)

    def run_student(
        self, batch_inputs: Any, data_samples: Samples = None, with_loss: bool = True
    ) -> dict[str, Tensor]:
        """Run both students on the first two views, record, and return the student's losses."""
        view, view_2 = map(self.student_view, self._views(batch_inputs)[:2])
        distiller = self.distiller
        distiller.set_deliveries_override(True)
        trains = self.student_trainable and torch.is_grad_enabled()
        mode = 'loss' if with_loss else 'tensor'
        with distiller.student_recorders, torch.set_grad_enabled(trains):
            # Deliveries hold one view only.
            with distiller.deliveries:
                result = self.student(view, data_samples, mode=mode)
            if not self.distillation_stopped:
                self.student(view_2, data_samples, mode='tensor')
                with torch.no_grad():
                    self.slow_student(view_2, data_samples, mode='tensor')
                    self.slow_student(view, data_samples, mode='tensor')
        return result if with_loss else {}

    def update_averages(self) -> None:
        """Move slow student and averaged projectors; ``CoCoRDHook`` does so before each step."""
        if not self.distillation_stopped:
            loss = self.cocord_loss
            move_averages(
                self.slow_student.parameters(), self.student.parameters(), loss.slow_momentum
            )
            loss.update_averages()

    def init_weights(self) -> None:
        """Initialise the weights; the slow student starts as a copy of the student."""
        super().init_weights()
        self._copy_student()

    def _copy_student(self) -> None:
        self.slow_student.load_state_dict(self.student.state_dict())

    def _infer_widths(self, input_shape: Sequence[int]) -> None:
        """Let the student leave as many records as in a training step."""

        def repeat(student: nn.Module, inputs: tuple, output: Any) -> None:
            handle.remove()
            for _ in range(3):
                student(inputs[0], None, mode='tensor')

        handle = self.student.register_forward_hook(repeat)
        super()._infer_widths(input_shape)
        handle.remove()

    def _find_loss(self) -> tuple[str, list[str]]:
        """Return the name of the CoCoRDLoss and the student's recorders that it reads."""
        example = 'take configs/_base_/distillers/cocord.py as an example.'
        losses = self.distiller.distill_losses
        found = [name for name, loss in losses.items() if isinstance(loss, CoCoRDLoss)]
        if len(found) != 1:
            raise ValueError(
                f'distiller.distill_losses has {len(found)} losses of type crd_plugin.CoCoRDLoss, '
                f'CoCoRDDistill needs one; {example}'
            )
        (name,) = found
        mapping = self.distiller.loss_forward_mappings.get(name)
        if not mapping:
            raise ValueError(
                f'loss_forward_mappings has no {name}, so CoCoRDLoss is given no features; '
                f'{example}'
            )
        return name, sorted({one['recorder'] for one in mapping.values() if one['from_student']})

    def _views(self, batch_inputs: Any) -> Sequence[Tensor]:
        """Return the views of a batch, or raise if it has another number of them."""
        single = isinstance(batch_inputs, Tensor)
        if not single and len(batch_inputs) == self.num_views:
            return batch_inputs
        found = 'single images' if single else f'{len(batch_inputs)} views'
        raise ValueError(
            f'CoCoRDDistill was given {found}, expected {self.num_views} views of each image; give '
            "the training data set pipeline=[dict(type='crd_plugin.MultiViewPipeline', ...)]."
        )
