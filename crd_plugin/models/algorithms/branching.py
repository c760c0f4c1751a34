"""Branches of a network: its last stages once more, behind a shared trunk."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn


class SkippedStage(nn.Sequential):
    """Return the input; stands in a branch where the network has a module of the trunk."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # A backbone's code may reach through to them.
        for name, child in module.named_children():
            self.add_module(name, SkippedStage(child))

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Return the trunk's output, whatever else the module is given."""
        return x


def run_and_watch(
    net: nn.Module, names: Iterable[str], images: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the first input of each named module, in the order of their calls, and the logits."""
    inputs: dict[str, Any] = {}

    def keep(name: str, module: nn.Module, args: tuple) -> None:
        inputs.setdefault(name, args[0] if args else None)

    with ExitStack() as handles:
        for name in names:
            hook = net.get_submodule(name).register_forward_pre_hook(partial(keep, name))
            handles.callback(hook.remove)
        logits = net(images, None, mode='tensor')
    return inputs, logits


@torch.no_grad()
def find_trunk(
    net: nn.Module, branch_from: str, images: Tensor
) -> tuple[list[str], Tensor, Tensor]:
    """Return the names of the modules called before a stage, the stage's input, and the logits."""
    names = []
    for name, child in getattr(net, 'backbone', nn.Module()).named_children():
        parts = [f'.{i}' for i in range(len(child))] if isinstance(child, nn.ModuleList) else ['']
        names += [f'backbone.{name}{part}' for part in parts]
    if branch_from not in names:
        raise ValueError(
            f'branch_from={branch_from!r} is not a stage of the architecture; expected one of '
            f'{", ".join(names) or "its backbone, but it has none"}.'
        )
    try:
        inputs, logits = run_and_watch(net, names, images)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise ValueError(
            f'input_shape={tuple(images.shape[1:])} does not go through the architecture: '
            f'{error}; set model.input_shape to channels, height and width of one image, or '
            'correct model.architecture.'
        ) from error
    if branch_from not in inputs:
        raise ValueError(
            f'branch_from={branch_from!r} is not called by the architecture; expected one of '
            f'{", ".join(inputs)}. With pre_activation=True some backbones do not call their '
            'stages: leave it out.'
        )
    trunk = list(takewhile(lambda name: name != branch_from, inputs))
    return trunk, inputs[branch_from], logits


def make_branch(net: nn.Module, trunk: Sequence[str]) -> None:
    """Turn a network into a branch in place: its input is then the trunk's output."""
    for name in trunk:
        parent, _, child = name.rpartition('.')
        net.get_submodule(parent).add_module(child, SkippedStage(net.get_submodule(name)))
    for module in net.modules():
        # Working in place would change the input of the other branches.
        if hasattr(module, 'inplace'):
            module.inplace = False  # type: ignore[assignment]


@torch.no_grad()
def check_branch(net: nn.Module, branch: nn.Module, feature: Tensor, logits: Tensor) -> None:
    """Require that a branch with the network's weights gives the network's logits."""
    weights = net.state_dict()
    weights = {key: weights[key] for key in branch.state_dict()}
    try:
        found = torch.func.functional_call(branch, weights, (feature, None, 'tensor'))
        same = torch.allclose(found, logits, rtol=0, atol=1e-4 * float(logits.abs().max()))
        reason = 'gives other logits than the architecture'
    except Exception as error:  # A backbone may do anything with a skipped stage.
        same, reason = False, f'fails: {error}'
    if not same:
        raise ValueError(
            f'{type(net.backbone).__name__} cannot be divided at branch_from: a branch with the '
            f'same weights {reason}. Branches copy the last stages of backbones that hand one map '
            'from stage to stage, such as those of crd_plugin and the ResNets of mmpretrain; '
            'choose one of these, or another stage.'
        )
