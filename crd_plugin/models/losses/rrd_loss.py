"""Relational representation distillation."""

import torch.nn.functional as F
from torch import Tensor, nn

from crd_plugin.ops import no_autocast, pair_vectors, unit_vectors
from crd_plugin.registry import MODELS

from .._numbers import count, positive
from ..collectives import gather_rows, gather_sizes
from ..key_queue import KeyQueue
from ._common import SizedLoss


@MODELS.register_module()
class RRDLoss(SizedLoss):
    """Relational representation distillation: which of many samples is near.

    ``L = mean over b of KL(softmax_k(t_b . q_k / tau_t) || softmax_k(s_b . q_k / tau_s))`` with
    unit embeddings s, t and rows q of a queue of the teacher's latest embeddings. In training mode
    the batch of all ranks enters the queue first, so that each sample is compared with itself too.
    The student's linear layer is trained; the teacher's is random and constant. Neither ids, labels
    nor a hook are needed.

    Source: Giakoumoglou and Stathaki, arXiv:2407.12073; behaviour matched: giakoumoglou/distillers
    ``cifar/distillers/RRD.py`` @ a2ee80b, with the temperatures of its training scripts. Differs:
    the entropy of the teacher's distribution, a constant, is subtracted; the first rows of the
    queue have unit norm; a batch may be of any size.

    Args:
        s_channels (int, optional): Width of the student's vector. Defaults to None: inferred by
            ``FrozenTeacherDistill``.
        t_channels (int, optional): The same of the teacher.
        embed_dim (int): Width D of the embeddings. Defaults to 128.
        queue_size (int): Rows K of the queue. Defaults to 16384.
        s_temperature (float): tau_s. Defaults to 0.1.
        t_temperature (float): tau_t. Defaults to 0.02.
        loss_weight (float): Factor of the loss. Defaults to 1.0.

    Shape:
        One vector per sample, ``(B, s_channels)`` and ``(B, t_channels)``; maps are flattened.

    State in checkpoints: both layers; ``queue.keys`` ``(K, D)`` and ``queue.pointer``.

    Raises:
        ValueError, TypeError: If an argument is out of range or not a number.
    """

    pairing = staticmethod(pair_vectors)

    def __init__(
        self,
        s_channels: int | None = None,
        t_channels: int | None = None,
        embed_dim: int = 128,
        queue_size: int = 16384,
        s_temperature: float = 0.1,
        t_temperature: float = 0.02,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(loss_weight)
        self.embed_dim = count('embed_dim', embed_dim, ' (published: 128)')
        count('queue_size', queue_size, ' (published: 16384)')
        self.s_temperature = positive('s_temperature', s_temperature, 0.1)
        self.t_temperature = positive('t_temperature', t_temperature, 0.02)
        self.queue = KeyQueue(embed_dim, queue_size)
        self.set_sizes(s_channels=s_channels, t_channels=t_channels)

    def compare_layer(self, student: Tensor, teacher: Tensor) -> Tensor:
        """As for :class:`FeatureLoss`; in training mode, renew the queue first."""
        with no_autocast(student):
            student = unit_vectors(self.embed_s(student), dim=1)
            teacher = unit_vectors(self.embed_t(teacher), dim=1)
            if self.training:
                self.queue.commit(gather_rows(teacher, gather_sizes(len(teacher), teacher.device)))
            # A copy: the next batch changes the queue, maybe before the backward pass.
            rows = self.queue.keys.to(student.dtype, copy=True)
            found = (student @ rows.mT / self.s_temperature).log_softmax(1)
            target = (teacher @ rows.mT / self.t_temperature).log_softmax(1)
            return F.kl_div(found, target, reduction='batchmean', log_target=True)

    def build(self, s_size: tuple[int], t_size: tuple[int]) -> None:
        """Make the two layers."""
        self.embed_s = nn.Linear(*s_size, self.embed_dim)
        self.embed_t = nn.Linear(*t_size, self.embed_dim).requires_grad_(False)
