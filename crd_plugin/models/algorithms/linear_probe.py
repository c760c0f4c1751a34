"""A linear classifier on the features of a frozen network."""

from typing import Any

import torch
from mmengine.logging import MMLogger
from mmpretrain.models.classifiers import ImageClassifier
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from crd_plugin.compat import load_checkpoint
from crd_plugin.registry import MODELS

from .checkpoints import find_weights, fit_weights, load_strictly

_STUDENT = 'architecture.'


@MODELS.register_module()
class LinearProbe(ImageClassifier):
    """Train the head alone, on the features of a network that does not change.

    Backbone and neck have no gradient and are in eval mode. With ``finetune`` they train too.

    Source: the transfer of representations in the CRD paper, arXiv:1910.10699, table 4.

    Args:
        backbone_ckpt (str, optional): Path or URL of the network's checkpoint after any training:
            a distillation, whose student is taken, or of the network alone. Its head is left out,
            all else must fit. Defaults to None: random weights, with a warning.
        norm_eval (bool): Whether batch norm keeps its statistics; without, they follow the new
            images. Defaults to True.
        finetune (bool): Train the whole network, from the checkpoint on. Defaults to False.
        **kwargs: Arguments of ``mmpretrain.ImageClassifier``: ``backbone``, ``neck``, ``head`` ...

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it is that of another network, or there is no head.
    """

    def __init__(
        self,
        backbone_ckpt: str | None = None,
        norm_eval: bool = True,
        finetune: bool = False,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        if self.head is None:
            raise ValueError('head is None, but it is all that a LinearProbe trains; give one.')
        self.backbone_ckpt, self.norm_eval, self.finetune = backbone_ckpt, norm_eval, finetune
        for part in self.frozen:
            part.requires_grad_(False)
        if backbone_ckpt:
            self._load(backbone_ckpt)

    @property
    def frozen(self) -> list[nn.Module]:
        """list[nn.Module]: What does not train."""
        parts = () if self.finetune else (self.backbone, self.neck)
        return [part for part in parts if part is not None]

    def extract_feat(self, inputs: Tensor, stage: str = 'neck') -> Any:
        """Extract features as ``ImageClassifier`` does, without gradient unless it is finetuned."""
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            return super().extract_feat(inputs, stage)

    def train(self, mode: bool = True) -> 'LinearProbe':
        """Set the mode of the head; all else is in eval mode, batch norm as ``norm_eval`` says."""
        super().train(mode)
        for part in self.frozen:
            part.eval()
            for module in part.modules():
                if isinstance(module, _BatchNorm):
                    module.train(mode and not self.norm_eval)
        return self

    def init_weights(self) -> None:
        """Initialise the weights, and warn of a network that has only random ones."""
        if not self.backbone_ckpt and self.backbone.init_cfg is None:
            MMLogger.get_current_instance().warning(
                'backbone_ckpt is not given: a network of random weights is probed unless a '
                'checkpoint brings others. Set model.backbone_ckpt to a trained checkpoint.'
            )
        super().init_weights()

    def _load(self, checkpoint: str) -> None:
        """Load all but the head, and keep ``init_weights`` from replacing it."""
        source = f'backbone_ckpt={checkpoint}'
        weights = find_weights(load_checkpoint(checkpoint), source)
        student = {n: value for n, value in weights.items() if n.startswith(_STUDENT)} or weights
        weights = {n.removeprefix(_STUDENT): value for n, value in student.items()}
        weights = {n: value for n, value in weights.items() if not n.startswith('head.')}
        parts = {n: part for n, part in self.named_children() if n in ('backbone', 'neck')}
        network = nn.ModuleDict(parts)
        load_strictly(
            network,
            fit_weights(weights, network, source),
            source,
            'the network that is probed',
            'Give the config of a probe whose model.backbone is that of the checkpoint (type, '
            'depth, widths).',
        )
        for part in parts.values():
            part._is_init = True
