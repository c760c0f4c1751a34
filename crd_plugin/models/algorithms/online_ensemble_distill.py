"""Distillation without a teacher: branches learn from their ensemble."""

import copy
import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.model import ModuleList
from mmengine.structures import BaseDataElement
from mmrazor.models.algorithms import BaseAlgorithm
from mmrazor.registry import MODELS as RAZOR_MODELS
from torch import Tensor, nn

from crd_plugin.registry import MODELS

from .branching import BranchPoint, replay


@MODELS.register_module()
class OnlineEnsembleDistill(BaseAlgorithm):
    """On-the-fly native ensemble: the online KD of the CRD paper's tables.

    The network's last layers exist m times behind a shared trunk: once in
    ``architecture``, which is the student, and m - 1 times in ``branches``,
    freshly initialised. A gate looks at the trunk's output and gives each
    branch an importance, ``g = softmax(ReLU(BN(FC(pool(feature)))))``. The
    ensemble's logits ``z_e = sum_i g_i z_i`` teach all branches:

        sum_i CE(z_i, y) + CE(z_e, y)
            + T^2 sum_i KL(softmax(z_e / T) || softmax(z_i / T))

    What is deployed is ``architecture`` alone, a plain network.

    Source: Lan, Zhu and Gong, arXiv:1806.04606. Behaviour matched:
    Lan1991Xu/ONE_NeurIPS2018 @ 54afde3, ``models/cifar/resnet.py`` (branches
    of full width, gate on the globally pooled trunk), ``loss/kl_loss.py``
    (T = 3, mean over the batch, no gradient through the ensemble's side) and
    ``cifar_one.py`` (sum of the terms). Differs: the KL divergence is exact,
    where the original adds 1e-7 to each probability of the ensemble; its
    ``--consistency_rampup``, which is no part of the objective, is
    ``ramp_up`` and grows with each iteration rather than each epoch; branches
    are initialised as the config of the architecture says.

    Args:
        architecture (dict): Config of a classifier of mmpretrain, such as
            ``student`` of a pair.
        branch_from (str): Its first module that each branch has a copy of;
            all that is called before it is shared. In the original the last
            stage: ``'backbone.layer3'`` (``block3`` of a wide ResNet,
            ``block4`` of VGG, ``blocks.5`` of MobileNetV2); later
            implementations take the last two for ImageNet,
            ``'backbone.layer3'`` of four.
        num_branches (int): Branches m, the student counted. Defaults to 3.
        tau (float): Temperature T of the KL divergence. Defaults to 3.
        branch_weight (float): Factor of the branches' cross-entropies,
            the student's included. Defaults to 1.
        ensemble_weight (float): Factor of the ensemble's. Defaults to 1.
        kl_weight (float): Factor of the divergence. Defaults to 1.
        detach_ensemble (bool): No gradient through the ensemble's side of the
            divergence; False lets it come closer to the branches too.
            Defaults to True.
        ramp_up (float): Fraction r of all iterations, [0, 1], over which
            ``kl_weight`` grows by exp(-5 (1 - t / r)^2) at progress t. The
            original's scripts have 80 of 300 epochs. Defaults to 0: the whole
            weight from the start, as the objective stands.
        predict_with (str): ``'branch'``: the student alone is evaluated;
            ``'ensemble'``: all branches with the gate. Defaults to
            ``'branch'``.
        input_shape (Sequence[int]): Channels, height and width of the image
            that the point of division is looked for with. Defaults to
            (3, 32, 32).
        data_preprocessor (dict, optional): The runner gives that of the
            config. Defaults to None: the architecture's.
        init_cfg (dict, optional): Defaults to None.

    State in checkpoints: ``architecture``, ``branches``, ``gate``.

    Raises:
        TypeError: If ``architecture`` is no config.
        ValueError: If an argument is out of range, the architecture cannot be
            divided at ``branch_from``, or its head has no loss.
    """

    def __init__(
        self,
        architecture: Dict,
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
        data_preprocessor: Optional[Dict] = None,
        init_cfg: Optional[Dict] = None,
    ) -> None:
        if not isinstance(architecture, dict):
            raise TypeError(
                f'architecture is {type(architecture).__name__}, expected '
                'the config of a network: each branch is built from it, with '
                'weights of its own.'
            )
        if not isinstance(num_branches, int) or isinstance(num_branches, bool) or num_branches < 2:
            raise ValueError(
                f'num_branches is {num_branches!r}, expected an int of 2 at '
                'least; for the student alone use the config of the plain '
                'network.'
            )
        if not (isinstance(tau, (int, float)) and 0 < tau < math.inf):
            raise ValueError(f'tau is {tau!r}, expected a finite temperature above 0, such as 3.')
        weights = dict(
            branch_weight=branch_weight, ensemble_weight=ensemble_weight, kl_weight=kl_weight
        )
        for name, weight in weights.items():
            if not (isinstance(weight, (int, float)) and 0 <= weight < math.inf):
                raise ValueError(
                    f'{name} is {weight!r}, expected a finite number that is not negative.'
                )
        if not (isinstance(ramp_up, (int, float)) and 0 <= ramp_up <= 1):
            raise ValueError(
                f'ramp_up is {ramp_up!r}, expected a fraction of the training '
                'in [0, 1], such as 80 / 300.'
            )
        if predict_with not in ('branch', 'ensemble'):
            raise ValueError(f"predict_with is {predict_with!r}, expected 'branch' or 'ensemble'.")
        super().__init__(copy.deepcopy(architecture), data_preprocessor, init_cfg)
        head = getattr(self.architecture, 'head', None)
        if not callable(getattr(head, 'loss_module', None)):
            raise ValueError(
                'architecture.head has no loss_module, expected a head for '
                'classification such as mmpretrain.LinearClsHead.'
            )
        self.num_branches = num_branches
        self.tau = tau
        self.branch_weight = branch_weight
        self.ensemble_weight = ensemble_weight
        self.kl_weight = kl_weight
        self.detach_ensemble = detach_ensemble
        self.ramp_up = ramp_up
        self.predict_with = predict_with
        self._divide(architecture, branch_from, input_shape)

    def loss(
        self, inputs: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> Dict[str, Tensor]:
        """Losses of all branches, of the ensemble, and between them.

        Args:
            inputs (Tensor): Images, ``(B, C, H, W)``.
            data_samples (list[BaseDataElement]): With ``gt_label``, or
                ``gt_score`` after mixing images.

        Returns:
            dict[str, Tensor]: Cross-entropies ``student.loss``,
            ``branch1.loss`` ... and ``ensemble.loss``; the divergence
            ``distill.loss_online_kd``; with labels also the accuracies of
            student and ensemble on this batch in percent, for the log.

        Raises:
            ValueError: If there is one sample only, or none is annotated.
        """
        # SyncBatchNorm has the samples of the other ranks as well.
        alone = isinstance(self.gate.bn, nn.BatchNorm1d)
        if self.training and alone and len(inputs) < 2:
            raise ValueError(
                'The batch has 1 sample; the batch norm of the gate needs 2. '
                'Set train_dataloader.drop_last=True, or another batch_size.'
            )
        logits, gates = self._all_logits(inputs)
        ensemble = _gated_sum(logits, gates)
        target = _target(data_samples)
        losses = {}
        for i, one in enumerate(logits):
            name = f'branch{i}.loss' if i else 'student.loss'
            losses[name] = self.branch_weight * self._cross_entropy(one, target)
        losses['ensemble.loss'] = self.ensemble_weight * self._cross_entropy(ensemble, target)
        taught_by = ensemble.detach() if self.detach_ensemble else ensemble
        divergence = sum(_softened_kl(one, taught_by, self.tau) for one in logits)
        losses['distill.loss_online_kd'] = self.kl_weight * self._ramp() * divergence
        if target.dim() == 1:
            for name, one in (('student', logits[0]), ('ensemble', ensemble)):
                right = one.detach().argmax(dim=1) == target
                losses[f'{name}.accuracy'] = 100 * right.float().mean()
        return losses

    def _forward(
        self, inputs: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> Tensor:
        """Logits of what is evaluated, ``(B, classes)``."""
        if self.predict_with == 'branch':
            return self.architecture(inputs, data_samples, mode='tensor')
        return _gated_sum(*self._all_logits(inputs))

    def _predict(
        self, inputs: Tensor, data_samples: Optional[List[BaseDataElement]] = None
    ) -> List[BaseDataElement]:
        """Predictions of what is evaluated."""
        if self.predict_with == 'branch':
            return self.architecture(inputs, data_samples, mode='predict')
        from mmpretrain.structures import DataSample

        scores = self._forward(inputs).softmax(dim=1)
        samples = data_samples or [DataSample() for _ in scores]
        for sample, score in zip(samples, scores):
            sample.set_pred_score(score).set_pred_label(score.argmax(dim=0, keepdim=True))
        return samples

    def _all_logits(self, inputs: Tensor) -> Tuple[List[Tensor], Tensor]:
        """Logits of each branch, the student first, and the gate's output."""
        with self._point.record(self.architecture) as tape:
            logits = [self.architecture(inputs, None, mode='tensor')]
        for branch in self.branches:
            with replay(branch, tape):
                logits.append(branch(inputs, None, mode='tensor'))
        return [_at_least_float32(one) for one in logits], self.gate(tape.feature)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss that the head's config asks for."""
        return self.architecture.head.loss_module(logits, target, avg_factor=len(logits))

    def _ramp(self) -> float:
        """Part of ``kl_weight`` that counts at this iteration."""
        hub = MessageHub.get_current_instance()
        total = hub.get_info('max_iters', 0)
        if not self.ramp_up or not total:
            return 1.0
        progress = hub.get_info('iter', 0) / (self.ramp_up * total)
        return math.exp(-5 * (1 - min(progress, 1.0)) ** 2)

    def _divide(self, config: Dict, branch_from: str, input_shape: Sequence[int]) -> None:
        """Build the other branches and the gate."""
        device = next(self.architecture.parameters()).device
        # Of a generator of its own: building draws nothing from the others.
        images = torch.randn((2, *input_shape), generator=torch.Generator().manual_seed(0))
        images = images.to(device)
        self._point = BranchPoint(self.architecture, branch_from, images)
        branches = []
        for _ in range(self.num_branches - 1):
            branch = RAZOR_MODELS.build(copy.deepcopy(config))
            self._point.make_branch(self.architecture, branch)
            branches.append(branch)
        feature = self._point.check(self.architecture, branches[0], images)
        # MMEngine's list, through which weights are initialised.
        self.branches = ModuleList(branches)
        self.gate = _Gate(_pool(feature).size(1), self.num_branches)

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, *args, **kwargs
    ) -> None:
        """Refuse the checkpoint of a plain network."""
        if not any(key.startswith(f'{prefix}architecture.') for key in state_dict):
            raise ValueError(
                'The checkpoint has no weights under "architecture.", so it '
                'is not one of a distillation; test it with the config of '
                'the plain network.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Gate(nn.Module):
    """Importance of each branch, from the feature that all share."""

    def __init__(self, width: int, num_branches: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_branches)
        self.bn = nn.BatchNorm1d(num_branches)

    def forward(self, feature: Tensor) -> Tensor:
        """Softmax over the branches, ``(B, m)``, float32 at least."""
        scores = self.bn(self.fc(_pool(feature))).relu()
        return _at_least_float32(scores).softmax(dim=1)


def _pool(feature: Tensor) -> Tensor:
    """One vector an image, of a map, of tokens or of a vector.

    Args:
        feature (Tensor): ``(B, C, H, W)``, ``(B, L, C)`` or ``(B, C)``.

    Returns:
        Tensor: ``(B, C)``.
    """
    if feature.dim() == 4:
        return feature.mean(dim=(2, 3))
    return feature.mean(dim=1) if feature.dim() == 3 else feature


def _gated_sum(logits: Sequence[Tensor], gates: Tensor) -> Tensor:
    """Logits of the ensemble, ``(B, classes)``."""
    # (B, m, 1) * (B, m, classes)
    return (gates.unsqueeze(2) * torch.stack(tuple(logits), dim=1)).sum(dim=1)


def _softened_kl(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    """``tau^2 KL(teacher || student)``, the mean over the batch."""
    return tau**2 * F.kl_div(
        F.log_softmax(student / tau, dim=1),
        F.log_softmax(teacher / tau, dim=1),
        reduction='batchmean',
        log_target=True,
    )


def _target(data_samples: Optional[List[BaseDataElement]]) -> Tensor:
    """Labels ``(B,)``, or scores ``(B, classes)`` after mixing images."""
    if not data_samples or not ('gt_label' in data_samples[0] or 'gt_score' in data_samples[0]):
        raise ValueError(
            "data_samples have neither gt_label nor gt_score; mode='loss' needs annotated samples."
        )
    if 'gt_score' in data_samples[0]:
        return torch.stack([sample.gt_score for sample in data_samples])
    return torch.cat([sample.gt_label for sample in data_samples])


def _at_least_float32(x: Tensor) -> Tensor:
    """Sixteen bits are too few for logarithms of probabilities."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
