"""Distillation from a teacher that stays as it is."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader
from mmengine.structures import BaseDataElement
from mmrazor.models.algorithms import SingleTeacherDistill
from mmrazor.models.utils import add_prefix
from torch import Tensor, nn

from crd_plugin.compat import load_checkpoint_file
from crd_plugin.registry import MODELS

from ..recorders import SampleFieldRecorder
from . import speed


@MODELS.register_module()
class FrozenTeacherDistill(SingleTeacherDistill):
    """``mmrazor.SingleTeacherDistill`` with what it leaves undone.

    * The whole teacher is in eval mode. The original freezes only batch norm
      (``teacher_norm_eval``), so its dropout and drop path stay random.
    * Its checkpoint is loaded strictly, before training. The original calls
      ``load_checkpoint`` without ``strict``, so a checkpoint of another
      network leaves random weights behind a warning.
    * Its loss is not computed: it runs in ``mode='tensor'``, head included,
      and so does the student with ``calculate_student_loss=False``, which
      then needs no labels.
    * The student may start from given weights.
    * Widths that connectors and losses leave out are taken from one forward
      pass when the model is built, before optimizer and DDP see the
      parameters.

    Args:
        distiller (dict): Config of a distiller.
        teacher (dict | BaseModel): Config of the teacher, or the model.
        teacher_ckpt (str, optional): Path or URL of its checkpoint. Defaults
            to None: the teacher's own ``init_cfg`` counts; random weights are
            warned of.
        student_ckpt (str, optional): Path or URL of weights that the student
            starts from, loaded strictly. Defaults to None.
        input_shape (Sequence[int]): Channels, height and width of the image
            that widths are inferred with. Defaults to (3, 32, 32).
        channels_last (bool): Lay images and weights out with channels last,
            see ``docs/performance.md``. Defaults to False.
        compile (bool | dict): Let ``torch.compile`` translate the backbones
            of both networks; a dict has its arguments. Defaults to False.
        **kwargs: Of ``mmrazor.SingleTeacherDistill``: ``architecture`` (the
            student), ``student_trainable``, ``calculate_student_loss`` …

    Raises:
        ValueError: If ``teacher_trainable`` is asked for, a checkpoint does
            not fit, ``input_shape`` does not, or ``compile`` has what
            ``torch.compile`` does not take.
        TypeError: If ``channels_last`` or ``compile`` is of another type.
        FileNotFoundError: If a checkpoint does not exist.
    """

    def __init__(
        self,
        distiller: dict,
        teacher: Union[BaseModel, Dict],
        teacher_ckpt: Optional[str] = None,
        student_ckpt: Optional[str] = None,
        input_shape: Sequence[int] = (3, 32, 32),
        channels_last: bool = False,
        compile: Union[bool, Mapping[str, Any]] = False,
        **kwargs,
    ) -> None:
        if kwargs.pop('teacher_trainable', False):
            raise ValueError(
                'teacher_trainable is True, but FrozenTeacherDistill trains '
                'no teacher; use mmrazor.SingleTeacherDistill for that.'
            )
        if not isinstance(channels_last, bool):
            raise TypeError(f'channels_last is {channels_last!r}, expected True or False.')
        super().__init__(distiller=distiller, teacher=teacher, **kwargs)
        if teacher_ckpt:
            load_strictly(self.teacher, teacher_ckpt, 'teacher')
        if student_ckpt:
            load_strictly(self.student, student_ckpt, 'student')
        self.teacher.eval()
        self._infer_widths(input_shape)
        self.channels_last = channels_last
        self._compiled = compile is not False
        networks = dict(teacher=self.teacher, student=self.student)
        for role, network in networks.items():
            if channels_last:
                network.to(memory_format=torch.channels_last)
            if self._compiled:
                speed.compile_backbone(network, role, compile)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Optional[List[BaseDataElement]] = None,
        mode: str = 'tensor',
    ) -> Any:
        """As in MMRazor, with images laid out as ``channels_last`` says.

        Args:
            inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement], optional): Annotations.
            mode (str): ``'loss'``, ``'predict'`` or ``'tensor'``.

        Returns:
            dict | list | Tensor: What the mode asks for.
        """
        if self._compiled:
            speed.begin_step()
        if self.channels_last:
            inputs = speed.channels_last(inputs)
        return super().forward(inputs, data_samples, mode)

    def loss(
        self, batch_inputs: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> Dict[str, Tensor]:
        """Student's own losses and the distiller's.

        Args:
            batch_inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement], optional): Annotations.

        Returns:
            dict[str, Tensor]: Losses under ``student.`` and ``distill.``.
        """
        self.run_teacher(batch_inputs, data_samples)
        student_losses = self.run_student(batch_inputs, data_samples, self.calculate_student_loss)
        losses = dict(add_prefix(student_losses, 'student'))
        if not self.distillation_stopped:
            losses.update(add_prefix(self.distiller.compute_distill_losses(), 'distill'))
        return losses

    def run_teacher(
        self, batch_inputs: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> None:
        """Forward pass of the teacher, recorded.

        Args:
            batch_inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement], optional): Annotations.
        """
        distiller = self.distiller
        distiller.set_deliveries_override(False)
        with distiller.teacher_recorders, distiller.deliveries, torch.no_grad():
            self.teacher(batch_inputs, data_samples, mode='tensor')

    def run_student(
        self,
        batch_inputs: Tensor,
        data_samples: Optional[List[BaseDataElement]] = None,
        with_loss: bool = True,
    ) -> Dict[str, Tensor]:
        """Forward pass of the student, recorded.

        Args:
            batch_inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement], optional): Annotations.
            with_loss (bool): Compute its own losses, which needs labels.
                Defaults to True.

        Returns:
            dict[str, Tensor]: The student's own losses, if any.
        """
        distiller = self.distiller
        distiller.set_deliveries_override(True)
        with (
            distiller.student_recorders,
            distiller.deliveries,
            torch.set_grad_enabled(self.student_trainable and torch.is_grad_enabled()),
        ):
            result = self.student(
                batch_inputs, data_samples, mode='loss' if with_loss else 'tensor'
            )
        return result if with_loss else {}

    def train(self, mode: bool = True) -> 'FrozenTeacherDistill':
        """Set the mode of all but the teacher, which stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def init_weights(self) -> None:
        """Start training; a teacher without weights is warned of."""
        if not self.teacher.is_init and self.teacher.init_cfg is None:
            MMLogger.get_current_instance().warning(
                'teacher_ckpt is not given: the teacher has random weights '
                'unless a checkpoint brings others. Set model.teacher_ckpt to '
                'a trained checkpoint.'
            )
        super().init_weights()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        """Refuse a checkpoint that is none of a distillation."""
        if not any(key.startswith(f'{prefix}architecture.') for key in state_dict):
            raise ValueError(
                'The checkpoint has no weights under "architecture.", so it '
                'is not one of a distillation; test it with the config of '
                'the plain network, or start a student from it with '
                'model.student_ckpt.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def _infer_widths(self, input_shape: Sequence[int]) -> None:
        """Send one image through, for parts that lack their widths.

        A connector takes them from the feature it is given, a loss with
        modules of its own from all that its ``forward`` will be given.
        """
        distiller = self.distiller
        mappings = distiller.loss_forward_mappings
        records = [
            record
            for mapping in mappings.values()
            for record in mapping.values()
            if record.get('connector')
            and any(
                getattr(layer, 'needs_width', False)
                for layer in distiller.connectors[record['connector']].modules()
            )
        ]
        losses = [
            name
            for name in mappings
            if getattr(distiller.distill_losses[name], 'needs_width', False)
        ]
        if not records and not losses:
            return
        # Two images: batch norm of one value a channel would not run.
        image = torch.zeros(2, *input_shape)
        sides = (
            ('teacher', self.teacher, distiller.teacher_recorders),
            ('student', self.student, distiller.student_recorders),
        )
        for role, model, recorders in sides:
            training = model.training
            model.eval()
            try:
                with recorders:
                    model(image, None, mode='tensor')
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise ValueError(
                    f'input_shape={tuple(input_shape)} does not go through '
                    f'the {role}: {error}; set model.input_shape to '
                    'channels, height and width of one image, or give '
                    'in_channels of every connector.'
                ) from error
            finally:
                model.train(training)
        for record in records:
            record = dict(record)
            connector = distiller.connectors[record.pop('connector')]
            record.pop('connector_idx', None)
            feature = self._recorded(record)
            layers = connector if isinstance(connector, nn.Sequential) else [connector]
            for layer in layers:
                if getattr(layer, 'needs_width', False):
                    layer.infer_width(feature)
                feature = layer(feature)
        for name in losses:
            distiller.distill_losses[name].infer_width(
                **{
                    key: self._recorded(record)
                    for key, record in mappings[name].items()
                    if not self._is_sample_field(record)
                }
            )

    def _is_sample_field(self, record: dict) -> bool:
        """Ids and labels, which one image without samples does not have."""
        recorders = (
            self.distiller.student_recorders
            if record['from_student']
            else self.distiller.teacher_recorders
        )
        return isinstance(recorders.get_recorder(record['recorder']), SampleFieldRecorder)

    def _recorded(self, record: dict) -> Tensor:
        """A record of the forward pass; MMRazor only asserts that it is."""
        try:
            return self.distiller.get_record(**record)
        except (AssertionError, IndexError, TypeError) as error:
            raise ValueError(
                f'loss_forward_mappings asks for {record}, which was not '
                f'recorded: {error} Choose another data_idx or record_idx; '
                'tools/check_config.py shows what each recorder holds.'
            ) from error


def load_strictly(model: nn.Module, checkpoint: str, role: str) -> None:
    """Load weights that must fit exactly, and keep them from being reset.

    Args:
        model (nn.Module): The network.
        checkpoint (str): Path or URL.
        role (str): ``'teacher'`` or ``'student'``, for messages.

    Raises:
        ValueError: If keys are missing, unexpected or of another shape.
    """
    load = CheckpointLoader.load_checkpoint if '://' in checkpoint else load_checkpoint_file
    loaded = load(checkpoint, map_location='cpu')
    weights = loaded.get('state_dict', loaded)
    own = model.state_dict()
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    shapes = [
        f'{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}'
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f'{role}_ckpt={checkpoint} does not fit the {role}: '
            f'missing {_shorten(missing)}; unexpected {_shorten(unexpected)}; '
            f'other shapes {_shorten(shapes)}. {_mend(role, unexpected)}'
        )
    model.load_state_dict(weights)
    model._is_init = True


def _mend(role: str, unexpected: Sequence[str]) -> str:
    """What to do about weights that do not fit."""
    if any(key.startswith('architecture.') for key in unexpected):
        return (
            'It is the checkpoint of a distillation: take the student '
            'out with tools/model_converters/publish_student.py first.'
        )
    return (
        f'Give the config of the network that it was saved from as '
        f'model.{"teacher" if role == "teacher" else "architecture"} '
        '(depth, widths, number of classes).'
    )


def _shorten(keys: Sequence[str], most: int = 5) -> str:
    """The first few keys and how many more there are."""
    if not keys:
        return 'none'
    more = f' and {len(keys) - most} more' if len(keys) > most else ''
    return ', '.join(keys[:most]) + more
