"""Distillation without a teacher: branches learn from their ensemble."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.model import ModuleList
from mmengine.structures import BaseDataElement
from mmpretrain.structures import DataSample
from mmrazor.models.algorithms import BaseAlgorithm
from mmrazor.registry import MODELS as RAZOR_MODELS
from torch import Tensor, nn

from crd_plugin.models._numbers import count, not_negative, one_of, positive
from crd_plugin.ops.features import full_precision
from crd_plugin.registry import MODELS

from .branching import check_branch, find_trunk, make_branch, run_and_watch
from .student_interface import StudentInterface

Samples = list[BaseDataElement] | None


@MODELS.register_module()
class OnlineEnsembleDistill(StudentInterface, BaseAlgorithm):
    """Distil an on-the-fly native ensemble: the online KD of the CRD paper's tables.

    The network's last stages exist m times behind a shared trunk: once in ``architecture``, the
    student, and m - 1 times in ``branches``, with initial weights of their own. A gate
    ``g = softmax(ReLU(BN(FC(pool(feature)))))`` weighs them by the trunk's output. The ensemble's
    logits ``z_e = sum_i g_i z_i`` teach all branches:

        sum_i CE(z_i, y) + CE(z_e, y) + T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T))

    Branches need a classifier whose backbone hands one map from stage to stage: those of
    crd_plugin, the ResNets of mmpretrain and the like. Others are refused.

    Source: Lan, Zhu and Gong, arXiv:1806.04606. Behaviour matched: Lan1991Xu/ONE_NeurIPS2018 @
    54afde3. Differs: the KL divergence is exact, where the original adds 1e-7 to each probability
    of the ensemble; ``ramp_up`` (its ``--consistency_rampup``) grows per iteration; branches are
    initialised as the config of the architecture says.

    Args:
        architecture (dict): Config of a classifier of mmpretrain.
        branch_from (str): First stage that each branch has of its own, in the original the last:
            ``'backbone.layer3'`` of a ResNet, ``block3`` of a wide one.
        num_branches (int): Branches m, including the student. Defaults to 3.
        tau (float): Temperature T of the KL divergence. Defaults to 3.
        branch_weight (float): Weight of the cross-entropy of each branch. Defaults to 1.
        ensemble_weight (float): Weight of the ensemble's cross-entropy. Defaults to 1.
        kl_weight (float): Weight of the divergence. Defaults to 1.
        detach_ensemble (bool): Stop the gradient through the ensemble's side of the divergence.
            Defaults to True.
        ramp_up (float): Fraction r of all iterations, [0, 1], over which ``kl_weight`` grows by
            exp(-5 (1 - t / r)^2) at progress t. Defaults to 0, as in the published objective; the
            original's scripts have 80 / 300.
        predict_with (str): ``'branch'``: evaluate the student alone; ``'ensemble'``: all branches
            with the gate. Defaults to ``'branch'``.
        input_shape (Sequence[int]): Channels, height and width of an image. Defaults to
            (3, 32, 32).
        data_preprocessor (dict, optional): Defaults to None: the architecture's.
        init_cfg (dict, optional): Initialisation config. Defaults to None.

    Raises:
        ValueError, TypeError: If an argument is out of range or of another type, or the
            architecture cannot be divided at ``branch_from``.
    """

    def __init__(
        self,
        architecture: dict,
        branch_from: str,
        num_branches: int = 3,
        tau: float = 3.0,
        branch_weight: float = 1.0,
        ensemble_weight: float = 1.0,
        kl_weight: float = 1.0,
        detach_ensemble: bool = True,
        ramp_up: float = 0.0,
        predict_with: str = 'branch',
        input_shape: Sequence[int] = (3, 32, 32),
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        if not isinstance(architecture, dict):
            raise TypeError(
                f'architecture is {type(architecture).__name__}, expected the config of a network: '
                'each branch is built from it, with weights of its own.'
            )
        if count('num_branches', num_branches) < 2:
            raise ValueError(
                'num_branches is 1, expected at least 2; for the student alone use the config of '
                'the plain network.'
            )
        if not_negative('ramp_up', ramp_up) > 1:
            raise ValueError(
                f'ramp_up is {ramp_up}, expected a fraction of the training in [0, 1], such as '
                '80 / 300.'
            )
        super().__init__(copy.deepcopy(architecture), data_preprocessor, init_cfg)
        if not callable(getattr(getattr(self.architecture, 'head', None), 'loss_module', None)):
            raise ValueError(
                'architecture.head has no loss_module, expected a head for classification such as '
                'mmpretrain.LinearClsHead.'
            )
        self.branch_from = branch_from
        self.num_branches = num_branches
        self.tau = positive('tau', tau, 3)
        self.branch_weight = not_negative('branch_weight', branch_weight)
        self.ensemble_weight = not_negative('ensemble_weight', ensemble_weight)
        self.kl_weight = not_negative('kl_weight', kl_weight)
        self.detach_ensemble = detach_ensemble
        self.ramp_up = ramp_up
        self.predict_with = one_of('predict_with', predict_with, ('branch', 'ensemble'))
        self._divide(architecture, input_shape)

    def loss(self, inputs: Tensor, data_samples: Samples = None) -> dict[str, Tensor]:
        """Compute the losses of all branches, of the ensemble, and between them.

        Args:
            inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement]): Samples with ``gt_label``, or ``gt_score`` after
                mixing images.

        Returns:
            dict[str, Tensor]: Losses; with labels also accuracies in percent, for the log.

        Raises:
            ValueError: If there is only one sample, or the samples are not annotated.
        """
        # SyncBatchNorm has the samples of the other ranks as well.
        alone = isinstance(self.gate.bn, nn.BatchNorm1d)
        if self.training and alone and len(inputs) < 2:
            raise ValueError(
                'The batch has 1 sample; the batch norm of the gate needs 2. Set '
                'train_dataloader.drop_last=True, or another batch_size.'
            )
        logits, gates = self._all_logits(inputs)
        ensemble = _gated_sum(logits, gates)
        target = _target(data_samples)
        losses = {}
        for i, one in enumerate(logits):
            name = f'branch{i}.loss' if i else 'student.loss'
            losses[name] = self.branch_weight * self._cross_entropy(one, target)
        losses['ensemble.loss'] = self.ensemble_weight * self._cross_entropy(ensemble, target)
        teacher = ensemble.detach() if self.detach_ensemble else ensemble
        divergence: Any = sum(_softened_kl(one, teacher, self.tau) for one in logits)
        losses['distill.loss_online_kd'] = self.kl_weight * self._ramp() * divergence
        if target.dim() == 1:
            for name, one in (('student', logits[0]), ('ensemble', ensemble)):
                right = one.detach().argmax(dim=1) == target
                losses[f'{name}.accuracy'] = 100 * right.float().mean()
        return losses

    def predict(self, inputs: Tensor, data_samples: Samples = None, **kwargs) -> list:
        """Predict by what is evaluated."""
        return self._predict(inputs, data_samples)

    def _forward(self, inputs: Tensor, data_samples: Samples = None) -> Tensor:
        """Return the logits of what is evaluated, ``(B, classes)``."""
        if self.predict_with == 'branch':
            return super()._forward(inputs, data_samples)
        return _gated_sum(*self._all_logits(inputs))

    def _predict(self, inputs: Tensor, data_samples: Samples = None) -> list[BaseDataElement]:
        if self.predict_with == 'branch':
            return super()._predict(inputs, data_samples)
        scores = self._forward(inputs).softmax(dim=1)
        samples = data_samples or [DataSample() for _ in scores]
        for sample, score in zip(samples, scores, strict=True):
            sample.set_pred_score(score).set_pred_label(score.argmax(dim=0, keepdim=True))
        return samples

    def _all_logits(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the logits of each branch, the student first, and the gate's output."""
        given, student = run_and_watch(self.architecture, [self.branch_from], inputs)
        feature = given[self.branch_from]
        others = [branch(feature, None, mode='tensor') for branch in self.branches]
        return [full_precision(logits) for logits in (student, *others)], self.gate(feature)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.architecture.head.loss_module(logits, target, avg_factor=len(logits))

    def _ramp(self) -> float:
        """Return the share of ``kl_weight`` that counts at this iteration."""
        hub = MessageHub.get_current_instance()
        total = hub.get_info('max_iters', 0)
        if not self.ramp_up or not total:
            return 1.0
        progress = hub.get_info('iter', 0) / (self.ramp_up * total)
        return math.exp(-5 * (1 - min(progress, 1.0)) ** 2)

    def _divide(self, config: dict, input_shape: Sequence[int]) -> None:
        # A generator of its own: the initial weights must not depend on these images.
        images = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))
        images = images.to(next(self.architecture.parameters()).device)
        self.architecture.eval()
        trunk, feature, logits = find_trunk(self.architecture, self.branch_from, images)
        branches = [RAZOR_MODELS.build(copy.deepcopy(config)) for _ in range(self.num_branches - 1)]
        for branch in branches:
            make_branch(branch, trunk)
        check_branch(self.architecture, branches[0].eval(), feature, logits)
        # MMEngine's list, so that the weights of its modules are initialised.
        self.branches = ModuleList(branches)
        self.gate = _Gate(_pool(feature).size(1), self.num_branches)
        self.train()


class _Gate(nn.Module):
    """Importance of each branch, from the feature that all share."""

    def __init__(self, width: int, num_branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_branches)
        self.bn = nn.BatchNorm1d(num_branches)

    def forward(self, feature: Tensor) -> Tensor:
        """Return the softmax over the branches, ``(B, m)``, float32 at least."""
        scores = self.bn(self.fc(_pool(feature))).relu()
        return full_precision(scores).softmax(dim=1)


def _pool(feature: Tensor) -> Tensor:
    return feature.mean(dim=(2, 3)) if feature.dim() == 4 else feature


def _gated_sum(logits: list[Tensor], gates: Tensor) -> Tensor:
    """Return the logits of the ensemble, ``(B, classes)``."""
    # (B, m, 1) * (B, m, classes)
    return (gates.unsqueeze(2) * torch.stack(logits, dim=1)).sum(dim=1)


def _softened_kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """Return ``tau^2 KL(teacher || student)``, the mean over the batch."""
    return tau**2 * F.kl_div(
        F.log_softmax(student / tau, dim=1),
        F.log_softmax(teacher / tau, dim=1),
        reduction='batchmean',
        log_target=True,
    )


def _target(data_samples: Samples) -> Tensor:
    """Return labels ``(B,)``, or scores ``(B, classes)`` after mixing images."""
    if not data_samples or not ('gt_label' in data_samples[0] or 'gt_score' in data_samples[0]):
        raise ValueError(
            "data_samples have neither gt_label nor gt_score; mode='loss' needs annotated samples."
        )
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])
