"""The objective of CoCoRD and the small networks that belong to it."""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import (
    full_precision,
    move_averages,
    pair_vectors,
    prediction_distance,
    queue_logits,
    unit_vectors,
)
from crd_plugin.ops.features import Features
from crd_plugin.registry import MODELS

from .._numbers import count, not_negative, old_weight, positive
from ..key_queue import KeyQueue
from ._common import SizedLoss


class CoCoRDTerms(NamedTuple):
    """Parts of the last loss for the log: scalars without gradient and without weights."""

    contrast: Tensor  # InfoNCE against the queue.
    prediction: Tensor  # Distance of both predictions, in [0, 8].
    top1: Tensor  # Percentage of queries nearer to their own key than to any key in the queue.


@MODELS.register_module()
class CoCoRDLoss(SizedLoss):
    """Contrastive Consistent Representation Distillation.

    Two views of an image go through the student (features s, s') and through the slow student (z,
    z'), a third view through the teacher (t). With ``q = p(s)`` and ``d(a, b) = 2 - 2 cos(a, b)``
    the loss is ``w_c`` times InfoNCE of q with its key ``p_T(t)`` against the keys in the queue,
    all of unit length, plus ``w_p (d(g(q), p_S(z')) + d(g(q'), p_S(z)))``. The projector p and the
    predictor g are trained. The slow projector p_S and the teacher's projector p_T get no gradient:
    their parameters are moving averages of those of p; running statistics are their own.

    Source: Fu et al., Contrastive Consistent Representation Distillation, BMVC 2023; numbers of
    ShipengFu/CoCoRD ``cocord/builder.py`` @ 645b95d. Differs: a forward pass changes neither
    queue nor averages (``CoCoRDHook`` does, before and after it); all ranks' keys enter the
    queue; where widths differ, a trained linear layer, the connector, brings the student's feature
    to the teacher's width, and the slow student uses its average.

    Args:
        s_channels, t_channels (int, optional): Widths of the features. Defaults to None: inferred
            by ``CoCoRDDistill``.
        hidden_dim (int): Hidden width of a projector. Defaults to 2048.
        embed_dim (int): Width D of a key. Defaults to 2048.
        predictor_dim (int): Hidden width of the predictor. Defaults to 512.
        queue_size (int): Number K of keys in the queue. Defaults to 2048.
        temperature (float): tau. Defaults to 0.1.
        slow_momentum (float): Weight of the OLD value in the averages of the slow student and its
            projector, [0, 1). Defaults to 0.9.
        teacher_momentum (float): The same in the teacher's projector. Defaults to 0.999.
        contrast_weight, prediction_weight (float): w_c and w_p. Defaults to 1.0 and 4.0.
        loss_weight (float): Factor of the whole loss. Defaults to 1.0.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    pairing = staticmethod(pair_vectors)

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
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
        super().__init__(loss_weight)
        count('queue_size', queue_size)
        self.hidden_dim = count('hidden_dim', hidden_dim)
        self.embed_dim = count('embed_dim', embed_dim)
        self.temperature = positive('temperature', temperature, 0.1)
        self.slow_momentum = old_weight('slow_momentum', slow_momentum, 0.9)
        self.teacher_momentum = old_weight('teacher_momentum', teacher_momentum, 0.999)
        self.contrast_weight = not_negative('contrast_weight', contrast_weight)
        self.prediction_weight = not_negative('prediction_weight', prediction_weight)
        self.predictor = _mlp(embed_dim, count('predictor_dim', predictor_dim), embed_dim)
        self.queue = KeyQueue(embed_dim, queue_size)
        self.terms: CoCoRDTerms | None = None
        self._follows = False  # The averages have been moved, or loaded.
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    @property
    def min_samples(self) -> int:  # type: ignore[override]
        """int: Samples that batch norm in the projectors needs."""
        return 2 if self.training else 1

    def infer_width(self, s_feats: Features, t_feats: Features, **others: Any) -> None:
        """Build the layers for the widths of the features of :meth:`forward`."""
        super().infer_width(s_feats, t_feats)

    def forward(  # type: ignore[override]
        self,
        s_feats: Features,
        s_feats_2: Features,
        slow_feats: Features,
        slow_feats_2: Features,
        t_feats: Features,
    ) -> Tensor:
        """Return the loss of one batch; in training mode, stage its keys in the queue.

        Args:
            s_feats (Tensor): Student's feature of the first view, ``(B, s_channels)`` float.
            s_feats_2 (Tensor): The same of the second view.
            slow_feats (Tensor): Slow student's feature of the first view.
            slow_feats_2 (Tensor): The same of the second view.
            t_feats (Tensor): Teacher's feature of the third view, ``(B, t_channels)`` float.

        Returns:
            Tensor: Scalar float32 (float64 for float64 features), times ``loss_weight``.

        Raises:
            ValueError: If shapes are not as described.
            RuntimeError: If the keys staged before were never committed, or the averages never
                moved since the first pass.
        """
        views = s_feats, s_feats_2, slow_feats, slow_feats_2
        pairs = [pair for view in views for pair in self.pair(view, t_feats)]
        for pair in pairs:
            self.check([pair])
        (first, teacher), (second, _), (slow, _), (slow_2, _) = pairs
        query = self.projector(self.connector(first))
        query_2 = self.projector(self.connector(second))
        predicted, predicted_2 = self.predictor(query), self.predictor(query_2)
        with torch.no_grad():
            key = unit_vectors(full_precision(self.teacher_projector(teacher)), dim=1)
            # The second view first: running statistics depend on the order.
            target_2 = self.slow_projector(self.slow_connector(slow_2))
            target = self.slow_projector(self.slow_connector(slow))
        unit_query = unit_vectors(full_precision(query), dim=1)
        logits = queue_logits(unit_query, key, self.queue.keys, self.temperature)
        contrast = F.cross_entropy(logits, logits.new_zeros(logits.size(0), dtype=torch.int64))
        # Each view's target is predicted from the other view.
        prediction = (
            prediction_distance(predicted, target_2) + prediction_distance(predicted_2, target)
        ).mean()
        if self.training:
            self.queue.stage(key)
            if self.terms is not None and not self._follows:
                raise RuntimeError(
                    'The averages of CoCoRDLoss were never moved, so its targets and keys are '
                    'those of random projectors: CoCoRDHook is missing; add '
                    "dict(type='crd_plugin.CoCoRDHook') to custom_hooks (in a loop of your own, "
                    "call update_averages() before each optimizer step's first forward pass)."
                )
        top1 = (logits.detach().argmax(1) == 0).to(logits.dtype).mean() * 100
        self.terms = CoCoRDTerms(contrast.detach(), prediction.detach(), top1)
        total = self.contrast_weight * contrast + self.prediction_weight * prediction
        return self.loss_weight * total

    def update_averages(self) -> None:
        """Move the averages towards their sources: once per optimizer step, before the forward."""
        for average, source, momentum in (
            (self.slow_connector, self.connector, self.slow_momentum),
            (self.slow_projector, self.projector, self.slow_momentum),
            (self.teacher_projector, self.projector, self.teacher_momentum),
        ):
            move_averages(average.parameters(), source.parameters(), momentum)
        self._follows = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Take the averages of a run, which may go on between two optimizer steps."""
        super()._load_from_state_dict(*args, **kwargs)
        self._follows = True

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make the layers that depend on the widths."""
        self.connector = nn.Identity() if s_size == t_size else nn.Linear(*s_size, *t_size)
        self.projector = _mlp(*t_size, self.hidden_dim, self.embed_dim)
        self.slow_connector = copy.deepcopy(self.connector).requires_grad_(False)
        self.slow_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build a projector or predictor: two linear layers with batch norm between them."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
    )
