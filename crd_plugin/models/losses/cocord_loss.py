"""The objective of CoCoRD and the small networks that belong to it."""

import copy
from typing import NamedTuple, Optional, Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import move_averages, prediction_distance, queue_logits
from crd_plugin.ops.features import full_precision
from crd_plugin.registry import MODELS

from ..key_queue import KeyQueue
from ._common import count, finite, positive


class CoCoRDTerms(NamedTuple):
    """Parts of the last loss, without gradient and without weights.

    Attributes:
        contrast (Tensor): InfoNCE against the queue, scalar.
        prediction (Tensor): Distance of both predictions, scalar, in [0, 8].
        top1 (Tensor): Percent of queries nearer to their own key than to
            any of the queue, scalar.
    """

    contrast: Tensor
    prediction: Tensor
    top1: Tensor


@MODELS.register_module()
class CoCoRDLoss(nn.Module):
    r"""Contrastive Consistent Representation Distillation.

    Two views of an image go through the student (features :math:`s, s'`) and
    through the slow student (:math:`\bar s, \bar s'`), a third one through
    the teacher (:math:`t`):

    .. math::
        L = w_c \, \mathrm{CE}\Big(\frac{1}{\tau}
            [\langle \hat q, k\rangle, \langle \hat q, v_1\rangle, \dots,
            \langle \hat q, v_K\rangle], 0\Big)
            + w_p \, \big(d(g(q), \bar p(\bar s'))
            + d(g(q'), \bar p(\bar s))\big)

    with :math:`q = p(s)`, :math:`\hat q` and :math:`k` of unit length,
    :math:`k \propto p_T(t)`, :math:`v` the keys in the queue and
    :math:`d(a, b) = 2 - 2 \cos(a, b)`, means over the batch. The projector p
    and the predictor g are trained. The slow projector :math:`\bar p` and the
    teacher's projector :math:`p_T` get no gradient: they are moving averages
    of p. Only parameters are averaged; each has running statistics of its
    own passes, two a step in p, g and :math:`\bar p`, one in :math:`p_T`.

    Source: Fu et al., Contrastive Consistent Representation Distillation,
    BMVC 2023; numbers of ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d.
    Differs: a forward pass changes neither queue nor averages (``CoCoRDHook``
    does, before and after it), all ranks' keys enter the queue, and the
    features may be of different widths, where the public code stops with an
    error of shapes. Then a trained linear layer, the connector, brings the
    student's feature to the teacher's width before the projector; the slow
    student has its average. So all that the teacher's feature goes through is
    still an average of what the student trains, layer by layer. (A first
    layer of the teacher's own would have to stay random, since no gradient
    reaches it.) Where widths agree there is no connector.

    Args:
        s_channels (int, optional): Width of the student's feature.
        t_channels (int, optional): Width of the teacher's. Both default to
            None: ``CoCoRDDistill`` infers them when the model is built.
        hidden_dim (int): Hidden width of a projector. Defaults to 2048.
        embed_dim (int): Width D of a key. Defaults to 2048.
        predictor_dim (int): Hidden width of the predictor. Defaults to 512.
        queue_size (int): Keys K in the queue. Defaults to 2048.
        temperature (float): tau. Defaults to 0.1.
        slow_momentum (float): Weight of the OLD value in the averages of the
            slow student and its projector, [0, 1). Defaults to 0.9.
        teacher_momentum (float): Likewise in the teacher's projector.
            Defaults to 0.999.
        contrast_weight (float): w_c. Defaults to 1.0.
        prediction_weight (float): w_p. Defaults to 4.0.
        loss_weight (float): Factor of the whole. Defaults to 1.0.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If one is no number where a number is expected.
    """

    def __init__(
        self,
        s_channels: Optional[int] = None,
        t_channels: Optional[int] = None,
        hidden_dim: int = 2048,
        embed_dim: int = 2048,
        predictor_dim: int = 512,
        queue_size: int = 2048,
        temperature: float = 0.1,
        slow_momentum: float = 0.9,
        teacher_momentum: float = 0.999,
        contrast_weight: float = 1.0,
        prediction_weight: float = 4.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check_numbers(locals())
        self.s_channels = s_channels
        self.t_channels = t_channels
        self.hidden_dim = hidden_dim
        self.embed_dim = embed_dim
        self.temperature = temperature
        self.slow_momentum = slow_momentum
        self.teacher_momentum = teacher_momentum
        self.contrast_weight = contrast_weight
        self.prediction_weight = prediction_weight
        self.loss_weight = loss_weight
        self.predictor = _mlp(embed_dim, predictor_dim, embed_dim)
        self.queue = KeyQueue(embed_dim, queue_size)
        # For the hook's log.
        self.terms: Optional[CoCoRDTerms] = None
        if not self.needs_width:
            self._build()

    @property
    def needs_width(self) -> bool:
        """bool: A width is still to be taken from a feature."""
        return self.s_channels is None or self.t_channels is None

    def infer_width(self, s_feats: Tensor, t_feats: Tensor, **kwargs) -> None:
        """Take the widths from features and make the layers.

        Args:
            s_feats (Tensor): As given to :meth:`forward`.
            t_feats (Tensor): Likewise.
            **kwargs: The others, which have the student's width.
        """
        if self.s_channels is None:
            self.s_channels = _vector('s_feats', s_feats).size(1)
        if self.t_channels is None:
            self.t_channels = _vector('t_feats', t_feats).size(1)
        self._build()

    def forward(
        self,
        s_feats: Tensor,
        s_feats_2: Tensor,
        slow_feats: Tensor,
        slow_feats_2: Tensor,
        t_feats: Tensor,
    ) -> Tensor:
        """Loss of one batch; in training mode keys are left in the queue.

        Args:
            s_feats (Tensor): Student's feature of the first view,
                ``(B, s_channels)`` float.
            s_feats_2 (Tensor): Student's feature of the second view.
            slow_feats (Tensor): Slow student's feature of the first view.
            slow_feats_2 (Tensor): Slow student's feature of the second view.
            t_feats (Tensor): Teacher's feature of the third view,
                ``(B, t_channels)`` float.

        Returns:
            Tensor: Scalar float32 (float64 for float64 features), already
            multiplied by ``loss_weight``.

        Raises:
            ValueError: If shapes are not as described.
            RuntimeError: If the last keys were never committed.
        """
        s_feats, s_feats_2, slow_feats, slow_feats_2, t_feats = self._check(
            s_feats=s_feats,
            s_feats_2=s_feats_2,
            slow_feats=slow_feats,
            slow_feats_2=slow_feats_2,
            t_feats=t_feats,
        )
        query = self.projector(self.connector(s_feats))
        query_2 = self.projector(self.connector(s_feats_2))
        predicted, predicted_2 = self.predictor(query), self.predictor(query_2)
        with torch.no_grad():
            key = F.normalize(full_precision(self.teacher_projector(t_feats)), dim=1)
            # In this order, which running statistics depend on.
            target_2 = self.slow_projector(self.slow_connector(slow_feats_2))
            target = self.slow_projector(self.slow_connector(slow_feats))
        logits = queue_logits(
            F.normalize(full_precision(query), dim=1), key, self.queue.keys, self.temperature
        )
        contrast = F.cross_entropy(logits, logits.new_zeros(logits.size(0), dtype=torch.int64))
        # What is seen in one view is to be foreseen from the other.
        prediction = (
            prediction_distance(predicted, target_2) + prediction_distance(predicted_2, target)
        ).mean()
        if self.training:
            self.queue.stage(key)
        self._note(logits, contrast, prediction)
        return self.loss_weight * (
            self.contrast_weight * contrast + self.prediction_weight * prediction
        )

    def update_averages(self) -> None:
        """Move slow projector, slow connector and teacher's projector.

        Once an optimizer step, before its forward pass.
        """
        for average, source, momentum in (
            (self.slow_connector, self.connector, self.slow_momentum),
            (self.slow_projector, self.projector, self.slow_momentum),
            (self.teacher_projector, self.projector, self.teacher_momentum),
        ):
            move_averages(average.parameters(), source.parameters(), momentum)

    def _build(self) -> None:
        """Make the parts that depend on the widths."""
        self.connector: nn.Module = nn.Identity()
        if self.s_channels != self.t_channels:
            self.connector = nn.Linear(self.s_channels, self.t_channels)
        self.projector = _mlp(self.t_channels, self.hidden_dim, self.embed_dim)
        self.slow_connector = _frozen_copy(self.connector)
        self.slow_projector = _frozen_copy(self.projector)
        self.teacher_projector = _frozen_copy(self.projector)

    @torch.no_grad()
    def _note(self, logits: Tensor, contrast: Tensor, prediction: Tensor) -> None:
        """Keep what the log shows; nothing is read back from the device."""
        first = (logits.argmax(1) == 0).to(logits.dtype).mean() * 100
        self.terms = CoCoRDTerms(contrast.detach(), prediction.detach(), first)

    def _check(self, **feats: Union[Tensor, Sequence[Tensor]]) -> list:
        """Features as vectors of the right width, or what is wrong."""
        if self.needs_width:
            raise ValueError(
                's_channels and t_channels of CoCoRDLoss are not known: give '
                'them in the config, or use crd_plugin.CoCoRDDistill, which '
                'infers them when the model is built.'
            )
        vectors, batch = [], None
        for name, feature in feats.items():
            feature = _vector(name, feature)
            batch = feature.size(0) if batch is None else batch
            argument = 't_channels' if name == 't_feats' else 's_channels'
            width = getattr(self, argument)
            if feature.shape != (batch, width):
                raise ValueError(
                    f'{name} has shape {tuple(feature.shape)}, expected '
                    f'({batch}, {width}): one feature an image, of width '
                    f'{argument}; set {argument}={feature.size(1)}, or leave '
                    'it out to infer it.'
                )
            vectors.append(feature)
        if self.training and batch < 2:
            raise ValueError(
                's_feats has 1 sample, expected at least 2: batch norm in '
                'the projectors compares the images of a batch; set '
                'train_dataloader.drop_last=True, or another batch_size.'
            )
        return vectors


def _check_numbers(given: dict) -> None:
    """Say which argument is out of range."""
    for name in (
        's_channels',
        't_channels',
        'hidden_dim',
        'embed_dim',
        'predictor_dim',
        'queue_size',
    ):
        value = given[name]
        if value is not None:
            count(name, value)
    positive('temperature', given['temperature'], 0.1)
    for name, published in (('slow_momentum', 0.9), ('teacher_momentum', 0.999)):
        if not 0 <= finite(name, given[name]) < 1:
            raise ValueError(
                f'{name} is {given[name]}, expected 0 <= {name} < 1: it is '
                'the weight of the old value, and 1 would never move '
                f'(published: {published}).'
            )
    for name in ('contrast_weight', 'prediction_weight', 'loss_weight'):
        finite(name, given[name])


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Projector and predictor: two layers with batch norm between."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )


def _frozen_copy(module: nn.Module) -> nn.Module:
    """A copy that no gradient reaches."""
    return copy.deepcopy(module).requires_grad_(False)


def _vector(name: str, feature: Union[Tensor, Sequence[Tensor]]) -> Tensor:
    """One vector a sample; a sequence of one tensor, as of a neck, will do."""
    if isinstance(feature, (tuple, list)) and len(feature) == 1:
        feature = feature[0]
    if isinstance(feature, (tuple, list)):
        raise ValueError(
            f'{name} is a sequence of {len(feature)} tensors, expected one; '
            'choose it with data_idx in loss_forward_mappings.'
        )
    if feature.dim() != 2:
        raise ValueError(
            f'{name} has shape {tuple(feature.shape)}, expected (B, '
            'channels): the pooled feature; record the neck.'
        )
    return feature
