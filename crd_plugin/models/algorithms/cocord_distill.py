"""CoCoRD: three views, a slow student and a queue of teacher keys."""

import copy
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmrazor.registry import MODELS as RAZOR_MODELS
from torch import Tensor, nn

from crd_plugin.ops import move_averages
from crd_plugin.registry import MODELS

from ..data_preprocessors import MultiViewPreprocessor
from ..losses.cocord_loss import CoCoRDLoss
from . import speed
from .frozen_teacher_distill import FrozenTeacherDistill


@MODELS.register_module()
class CoCoRDDistill(FrozenTeacherDistill):
    """Distillation of CoCoRD: student, slow student and frozen teacher.

    One step, given three views of each image:

    1. the teacher sees the third view, in eval mode and without gradient;
    2. the student sees the first view, of which its own loss is, then the
       second;
    3. the slow student, the moving average of the student's parameters, sees
       the second view, then the first, without gradient;
    4. ``CoCoRDLoss`` compares the features that the recorders hold.

    The recorders that ``CoCoRDLoss`` asks the student for listen to the slow
    student as well. They hold four records: ``record_idx`` 0 and 1 are the
    student's first and second view, 2 and 3 the slow student's second and
    first. Any other loss reads ``record_idx=0``, the student's first view,
    and the teacher's third one; so does KD beside it (the public code has
    none).

    Batch norm behaves as in the source: only parameters are averaged, so the
    slow student has running statistics of its own, gathered in train mode;
    both students see two batches a step, so the running statistics, also
    those that the student is evaluated with, move twice a step. The teacher's
    do not move.

    ``CoCoRDHook`` calls :meth:`update_averages` before each step and writes
    the keys of all ranks into the queue after it.

    Source: Fu et al., Contrastive Consistent Representation Distillation,
    BMVC 2023; behaviour matched: ShipengFu/CoCoRD ``cocord/builder.py`` @
    645b95d. Differs: the averages move before the first forward pass of a
    step rather than in its midst, which gives the same numbers; see
    ``CoCoRDLoss`` for features of different widths.

    Args:
        architecture (dict | BaseModel): The student.
        distiller (dict): Has one ``crd_plugin.CoCoRDLoss`` in
            ``distill_losses``, see ``configs/_base_/distillers/cocord.py``.
        teacher (dict | BaseModel): The teacher.
        **kwargs: Of ``FrozenTeacherDistill``.

    Raises:
        ValueError: If there is not exactly one ``CoCoRDLoss``, it is given no
            features, or the data preprocessor mixes images.
    """

    # What the training pipeline has to give, and the loss that it is for.
    num_views = 3
    loss_class = CoCoRDLoss

    def __init__(
        self,
        architecture: Union[BaseModel, Dict],
        distiller: dict,
        teacher: Union[BaseModel, Dict],
        **kwargs,
    ) -> None:
        if isinstance(architecture, dict):
            architecture = RAZOR_MODELS.build(architecture)
        # Before recorders hang their hooks on the student.
        slow_student = copy.deepcopy(architecture)
        super().__init__(architecture=architecture, distiller=distiller, teacher=teacher, **kwargs)
        self._loss_name, recorders = self._find_loss()
        self.data_preprocessor = MultiViewPreprocessor(self.data_preprocessor)
        self.slow_student = slow_student.requires_grad_(False)
        # It is copied, so weights of its own need neither time nor a file.
        self.slow_student._is_init = True
        for module in self.slow_student.modules():
            if not self.module_inplace and hasattr(module, 'inplace'):
                module.inplace = False  # it would overwrite a record
        self._copy_student()
        for name in recorders:
            self.distiller.student_recorders.get_recorder(name).initialize(self.slow_student)
        if self.channels_last:
            self.slow_student.to(memory_format=torch.channels_last)
        if kwargs.get('compile', False) is not False:
            speed.compile_backbone(self.slow_student, 'slow student', kwargs['compile'])

    @property
    def cocord_loss(self) -> CoCoRDLoss:
        """CoCoRDLoss: The distiller's."""
        return self.distiller.distill_losses[self._loss_name]

    def run_teacher(
        self, batch_inputs: Sequence[Tensor], data_samples: Optional[List[BaseDataElement]] = None
    ) -> None:
        """Show the teacher its view, and record.

        Args:
            batch_inputs (Sequence[Tensor]): Three views of the same images:
                two for the student, one for the teacher, each
                ``(B, C, H, W)``.
            data_samples (list[BaseDataElement], optional): Annotations.
        """
        super().run_teacher(self._views(batch_inputs)[2], data_samples)

    def run_student(
        self,
        batch_inputs: Sequence[Tensor],
        data_samples: Optional[List[BaseDataElement]] = None,
        with_loss: bool = True,
    ) -> Dict[str, Tensor]:
        """Show both students their views, and record.

        Args:
            batch_inputs (Sequence[Tensor]): As for :meth:`run_teacher`.
            data_samples (list[BaseDataElement], optional): Annotations.
            with_loss (bool): Compute the student's own losses of the first
                view, which needs labels. Defaults to True.

        Returns:
            dict[str, Tensor]: These losses, if any.
        """
        view, view_2, _ = self._views(batch_inputs)
        distiller = self.distiller
        distiller.set_deliveries_override(True)
        with (
            distiller.student_recorders,
            torch.set_grad_enabled(self.student_trainable and torch.is_grad_enabled()),
        ):
            # What is delivered is of one view.
            with distiller.deliveries:
                result = self.student(view, data_samples, mode='loss' if with_loss else 'tensor')
            if not self.distillation_stopped:
                self._other_passes(view, view_2, data_samples)
        return result if with_loss else {}

    def update_averages(self) -> None:
        """Move slow student and averaged projectors towards the student.

        Once an optimizer step, before its forward pass; ``CoCoRDHook`` does.
        """
        if self.distillation_stopped:
            return
        loss = self.cocord_loss
        move_averages(self.slow_student.parameters(), self.student.parameters(), loss.slow_momentum)
        loss.update_averages()

    def init_weights(self) -> None:
        """Start training; the slow student starts as a copy."""
        super().init_weights()
        self._copy_student()

    def _copy_student(self) -> None:
        """Parameters and buffers of the slow student are the student's."""
        self.slow_student.load_state_dict(self.student.state_dict())

    def _other_passes(
        self, view: Tensor, view_2: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> None:
        """All but the student's pass over the first view, in their order."""
        self.student(view_2, data_samples, mode='tensor')
        with torch.no_grad():
            self.slow_student(view_2, data_samples, mode='tensor')
            self.slow_student(view, data_samples, mode='tensor')

    def _infer_widths(self, input_shape: Sequence[int]) -> None:
        """The student's passes record as much as a training step does."""

        def go_on(student: nn.Module, inputs: tuple, output: Any) -> None:
            handle.remove()
            for _ in range(3):
                student(inputs[0], None, mode='tensor')

        handle = self.student.register_forward_hook(go_on)
        try:
            super()._infer_widths(input_shape)
        finally:
            handle.remove()

    def _find_loss(self) -> Tuple[str, List[str]]:
        """Name of the CoCoRDLoss and the student's recorders that it reads."""
        found = [
            name
            for name, loss in self.distiller.distill_losses.items()
            if isinstance(loss, CoCoRDLoss)
        ]
        if len(found) != 1:
            raise ValueError(
                f'distiller.distill_losses has {len(found)} losses of type '
                'crd_plugin.CoCoRDLoss, CoCoRDDistill needs one; take '
                'configs/_base_/distillers/cocord.py as an example.'
            )
        (name,) = found
        mapping = self.distiller.loss_forward_mappings.get(name)
        if not mapping:
            raise ValueError(
                f'loss_forward_mappings has no {name}, so CoCoRDLoss is given '
                'no features; take configs/_base_/distillers/cocord.py as an '
                'example.'
            )
        return name, sorted(
            {record['recorder'] for record in mapping.values() if record['from_student']}
        )

    def _views(self, batch_inputs: Any) -> Sequence[Tensor]:
        """Three batches of views, or what is there instead."""
        if isinstance(batch_inputs, (list, tuple)) and len(batch_inputs) == self.num_views:
            return batch_inputs
        found = (
            f'{len(batch_inputs)} views'
            if isinstance(batch_inputs, (list, tuple))
            else f'single images, {tuple(batch_inputs.shape)}'
        )
        raise ValueError(
            f'CoCoRDDistill was given {found}, expected {self.num_views} '
            'views of each image; make them with pipeline=[dict('
            "type='crd_plugin.MultiViewPipeline', transforms=train_pipeline)] "
            'in the training data set.'
        )
