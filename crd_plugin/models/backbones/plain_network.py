"""Any network of PyTorch that returns logits, as the backbone of a classifier."""

import copy
from collections.abc import Callable
from typing import Any

from mmengine.registry import MODELS as ROOT
from mmpretrain.models.heads import ClsHead
from torch import Tensor, nn

from crd_plugin.registry import MODELS

# Modules that a config names although it cannot hold them; they live as long as this process.
GIVEN: dict[str, nn.Module] = {}


@MODELS.register_module()
def plain_network(source: str, **kwargs: Any) -> nn.Module:
    """Build a network by the import path of what makes it.

    ``dict(type='crd_plugin.plain_network', source='torchvision.models.resnet18', num_classes=10)``
    is the backbone of a classifier whose head is ``crd_plugin.LogitsHead``.

    Args:
        source (str): Import path of a class or function; or the name of a module given to
            :func:`crd_plugin.distill`, which is copied.
        **kwargs (Any): Its arguments.

    Returns:
        nn.Module: The network.

    Raises:
        ValueError: If there is nothing of that name.
        TypeError: If it does not return a module.
    """
    if source in GIVEN:
        network: Any = copy.deepcopy(GIVEN[source])
    else:
        constructor: Callable | None = ROOT.get(source) if '.' in source else None
        if constructor is None:
            raise ValueError(
                f'source={source!r} cannot be imported; give the import path of a class or '
                "function, such as 'my_package.networks.small', not one that is defined within a "
                'function. A module that was given to crd_plugin.distill is known to that process '
                'only.'
            )
        network = constructor(**kwargs)
    if not isinstance(network, nn.Module):
        raise TypeError(f'{source} returns {type(network).__name__}, expected an nn.Module.')
    # Its weights stay: MMEngine would call the init_weights of models of timm and MMPretrain.
    network.is_init = True  # type: ignore[assignment]
    return network


@MODELS.register_module()
class LogitsHead(ClsHead):
    """Head of a classifier whose backbone returns the logits itself.

    Args:
        num_classes (int, optional): Number of classes. Defaults to None: not checked.
        **kwargs (Any): Arguments of ``mmpretrain.ClsHead``: ``loss`` ...

    Raises:
        ValueError: In the forward pass, if the backbone returns anything but ``(B, num_classes)``.
    """

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes

    def pre_logits(self, feats: Any) -> Tensor:
        """Return the logits, ``(B, num_classes)``."""
        logits = feats[-1] if isinstance(feats, (list, tuple)) else feats
        is_tensor = isinstance(logits, Tensor)
        shape = tuple(logits.shape) if is_tensor else type(logits).__name__
        if not is_tensor or len(shape) != 2 or self.num_classes not in (None, shape[1]):
            raise ValueError(
                f'the network returns {shape}, expected logits of shape (B, '
                f'{self.num_classes or "classes"}); give it that number of outputs.'
            )
        return logits
