"""Distillation from a teacher that does not change."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.structures import BaseDataElement
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from .._numbers import one_of
from ..recorders import SampleFieldRecorder
from ..recorders.classifier_recorders import members_of
from . import speed
from .checkpoints import load_pretrained
from .network_images import check_mixing, network_images
from .student_interface import StudentInterface
from .teacher_ensemble import Member, TeacherEnsemble, find_recorder

Samples = list[BaseDataElement] | None


@MODELS.register_module()
class FrozenTeacherDistill(StudentInterface, SingleTeacherDistill):
    """Distil from a frozen teacher: ``mmrazor.SingleTeacherDistill``, made strict.

    * The whole teacher is in eval mode. The original freezes only batch norm
      (``teacher_norm_eval``), so its dropout and drop path stay random.
    * Checkpoints are loaded strictly, before training.
    * The teacher's loss is not computed: it runs in ``mode='tensor'``, head included, and so does
      the student with ``calculate_student_loss=False``, which then needs no labels.
    * A network with a ``data_preprocessor`` of its own is given images as that one makes them.
    * Widths that connectors and losses leave out are taken from one forward pass when the model
      is built, before optimizer and DDP see the parameters.

    Args:
        distiller (dict): Config of a distiller.
        teacher (dict | BaseModel | Sequence): Config of the teacher, or the model; a list for an
            ensemble, see ``docs/ensembles.md``.
        teacher_ckpt (str | Sequence[str], optional): Path or URL of its checkpoint. A list makes
            an ensemble, one member per checkpoint. Defaults to None: as the teacher's ``init_cfg``
            says.
        student_ckpt (str, optional): Path or URL of weights that the student starts from. Defaults
            to None.
        teacher_view (dict | nn.Module, optional): What the teacher is given of the images, such as
            ``dict(type='crd_plugin.ChannelView', channels=[0, 1, 2])``, see
            ``docs/two_inputs.md``. Defaults to None: all of it.
        student_view (dict | nn.Module, optional): The same of the student, in tests too. Defaults
            to None: all of it.
        input_shape (Sequence[int]): Channels, height and width of the image that widths are
            inferred with, before any view. Defaults to (3, 32, 32).
        teacher_dtype (str, optional): ``'bfloat16'`` keeps and runs the teacher in this type;
            losses are given its features in float32. Defaults to None: float32.
        channels_last (bool): Lay images and weights out with channels last. Defaults to False.
        compile (bool | dict): Compile both backbones by ``torch.compile``; a dict holds its
            arguments. Defaults to False.
        **kwargs: Further arguments of ``mmrazor.SingleTeacherDistill``: ``architecture`` (the
            student), ``student_trainable``, ``calculate_student_loss`` ...

    Raises:
        ValueError, TypeError: If an argument is not one of the allowed values, a checkpoint or
            ``input_shape`` does not fit, or the student mixes images.
        FileNotFoundError: If a checkpoint does not exist.
    """

    advice = f'{StudentInterface.advice}, or start a student from it with model.student_ckpt'

    def __init__(
        self,
        distiller: dict,
        teacher: Member | Sequence[Member],
        teacher_ckpt: str | Sequence[str | None] | None = None,
        student_ckpt: str | None = None,
        teacher_view: nn.Module | dict | None = None,
        student_view: nn.Module | dict | None = None,
        input_shape: Sequence[int] = (3, 32, 32),
        teacher_dtype: str | None = None,
        channels_last: bool = False,
        compile: bool | Mapping[str, Any] = False,
        **kwargs,
    ) -> None:
        if kwargs.pop('teacher_trainable', False):
            raise ValueError(
                'teacher_trainable is True, but FrozenTeacherDistill trains no teacher; use '
                'mmrazor.SingleTeacherDistill.'
            )
        if not isinstance(channels_last, bool):
            raise TypeError(f'channels_last is {channels_last!r}, expected True or False.')
        one_of('teacher_dtype', teacher_dtype, (None, 'bfloat16'))
        one = teacher_ckpt is None or isinstance(teacher_ckpt, str)
        if isinstance(teacher, Sequence) or not one:
            teacher, teacher_ckpt = TeacherEnsemble(teacher, teacher_ckpt), None
        super().__init__(distiller=distiller, teacher=teacher, **kwargs)
        check_mixing(self.student, self.data_preprocessor)
        own = self.data_preprocessor
        if isinstance(self.teacher, TeacherEnsemble):
            self.teacher.prepare(self.distiller, own, teacher_view)
            teacher_view = None
        self.teacher_view = network_images(self.teacher, own, teacher_view, 'teacher')
        self.student_view = network_images(self.student, own, student_view, 'student')
        if isinstance(teacher_ckpt, str) and teacher_ckpt:
            load_pretrained(self.teacher, teacher_ckpt, 'teacher')
        if student_ckpt:
            load_pretrained(self.student, student_ckpt, 'student')
        self.teacher.eval()
        self._infer_widths(input_shape)
        self.channels_last = channels_last
        self.compile_options = compile
        self.teacher_dtype = teacher_dtype and getattr(torch, teacher_dtype)
        for network in members_of(self.teacher):
            if self.teacher_dtype:
                speed.keep_in_dtype(network, self.teacher_dtype)
            self._speed_up(network, 'teacher')
        self._speed_up(self.student, 'student')

    def forward(self, inputs: Tensor, data_samples: Samples = None, mode: str = 'tensor') -> Any:
        """Run as MMRazor does; tests and predictions are those of the student's view."""
        if self.compile_options is not False:
            # With CUDA graphs the student's pass would else overwrite the teacher's maps.
            torch.compiler.cudagraph_mark_step_begin()
        if self.channels_last:
            inputs = speed.channels_last(inputs)
        if mode != 'loss':
            inputs = self.student_view(inputs)
        return super().forward(inputs, data_samples, mode)

    def loss(self, batch_inputs: Tensor, data_samples: Samples = None) -> dict[str, Tensor]:
        """Compute the student's own losses (``student.``) and the distiller's (``distill.``)."""
        self.run_teacher(batch_inputs, data_samples)
        student_losses = self.run_student(batch_inputs, data_samples, self.calculate_student_loss)
        losses = dict(add_prefix(student_losses, 'student'))
        if not self.distillation_stopped:
            losses.update(add_prefix(self.distiller.compute_distill_losses(), 'distill'))
        return losses

    def run_teacher(self, batch_inputs: Any, data_samples: Samples = None) -> None:
        """Run the teacher on images ``(B, C, H, W)``, or views in a subclass, and record."""
        distiller = self.distiller
        distiller.set_deliveries_override(False)
        with distiller.teacher_recorders, distiller.deliveries, torch.no_grad():
            images = self.teacher_view(batch_inputs)
            # Whatever autocast asks for.
            off = torch.autocast(images.device.type, enabled=False)
            with off if self.teacher_dtype else nullcontext():
                self.teacher(images, data_samples, mode='tensor')
        if self.teacher_dtype:
            for recorder in distiller.teacher_recorders.recorders.values():
                recorder.data_buffer[:] = map(speed.in_float32, recorder.data_buffer)

    def run_student(
        self, batch_inputs: Any, data_samples: Samples = None, with_loss: bool = True
    ) -> dict[str, Tensor]:
        """Run the student, record, and return its own losses, none without ``with_loss``."""
        distiller = self.distiller
        distiller.set_deliveries_override(True)
        trains = self.student_trainable and torch.is_grad_enabled()
        mode = 'loss' if with_loss else 'tensor'
        with distiller.student_recorders, distiller.deliveries, torch.set_grad_enabled(trains):
            try:
                result = self.student(self.student_view(batch_inputs), data_samples, mode=mode)
            except AttributeError as error:
                if error.name != 'gt_label':
                    raise
                raise ValueError(
                    "The data samples have no gt_label, which the student's own loss needs; set "
                    'model.calculate_student_loss=False to train on the distillation alone.'
                ) from error
        return result if with_loss else {}

    def extract_feat(self, inputs: Tensor, **kwargs) -> Any:
        """Extract the student's features of its view."""
        return super().extract_feat(self.student_view(inputs), **kwargs)

    def predict(self, inputs: Tensor, *args, **kwargs) -> list[BaseDataElement]:
        """Predict by the student from its view."""
        return super().predict(self.student_view(inputs), *args, **kwargs)

    def train(self, mode: bool = True) -> 'FrozenTeacherDistill':
        """Set the mode of all modules but the teacher's, which stay in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def init_weights(self) -> None:
        """Initialise the weights, and warn of a teacher that has only random ones."""
        if not all(map(_has_weights, members_of(self.teacher))):
            MMLogger.get_current_instance().warning(
                'teacher_ckpt is not given: the teacher has random weights unless a checkpoint '
                'brings others. Set model.teacher_ckpt to a trained checkpoint.'
            )
        super().init_weights()

    def _speed_up(self, network: nn.Module, role: str) -> None:
        if self.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile_options is not False:
            speed.compile_backbone(network, role, self.compile_options)

    @torch.no_grad()
    def _infer_widths(self, input_shape: Sequence[int]) -> None:
        """Send an image through both networks, for connectors and losses that lack widths."""
        distiller = self.distiller
        if not any(map(_needs_width, distiller.modules())):
            return
        training = self.training
        self.eval()
        # Two images: batch norm of one value per channel would not run.
        images = torch.zeros(2, *input_shape)
        for role in ('teacher', 'student'):
            seen = getattr(self, f'{role}_view')(images)
            try:
                with getattr(distiller, f'{role}_recorders'):
                    getattr(self, role)(seen, None, mode='tensor')
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise ValueError(
                    f'input_shape={tuple(input_shape)} does not go through the {role}: {error}; '
                    'set model.input_shape to channels, height and width of one image, or give '
                    'in_channels of every connector.'
                ) from error
        mappings = distiller.loss_forward_mappings
        for mapping in mappings.values():
            for record in mapping.values():
                self._infer_connector(**record)
        for name, mapping in mappings.items():
            loss = distiller.distill_losses[name]
            if _needs_width(loss):
                # Images without data samples leave no ids and labels.
                features = {
                    key: self._recorded(**record)
                    for key, record in mapping.items()
                    if not isinstance(find_recorder(distiller, record), SampleFieldRecorder)
                }
                loss.infer_width(**features)
        self.train(training)

    def _infer_connector(
        self, connector: str | None = None, connector_idx: int | None = None, **record: Any
    ) -> None:
        """Give the layers of a record's connector their widths, one after the other."""
        module = self.distiller.connectors[connector] if connector else nn.Identity()
        if not any(map(_needs_width, module.modules())):
            return
        feature = self._recorded(**record)
        layers: list[Any] = list(module) if isinstance(module, nn.Sequential) else [module]
        for layer in layers:
            if _needs_width(layer):
                layer.infer_width(feature)
            feature = layer(feature)

    def _recorded(self, **record: Any) -> Any:
        """Return a record of the forward pass; MMRazor only asserts that it exists."""
        try:
            return self.distiller.get_record(**record)
        except (AssertionError, IndexError, TypeError) as error:
            raise ValueError(
                f'loss_forward_mappings asks for {record}, which was not recorded: {error} Choose '
                'another data_idx or record_idx; tools/check_config.py shows what each recorder '
                'holds.'
            ) from error


def _has_weights(network: Any) -> bool:
    """Tell whether weights are loaded, will be, or came with the backbone."""
    backbone = getattr(network, 'backbone', None)
    return bool(network.is_init or network.init_cfg or getattr(backbone, 'is_init', False))


def _needs_width(module: Any) -> bool:
    return getattr(module, 'needs_width', False)
