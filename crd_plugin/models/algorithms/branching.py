"""Networks of one config that share their first layers."""

import copy
import difflib
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn


class Tape:
    """What the trunk returned in one forward pass.

    Attributes:
        outputs (dict[str, list]): Outputs of each module of the trunk by its
            name, one entry a call.
        feature (Tensor, optional): Input of the module that the branches
            start with.
    """

    def __init__(self) -> None:
        self.outputs: Dict[str, List[Any]] = {}
        self.feature: Optional[Tensor] = None


class BranchPoint:
    """Where a network divides into branches; found by one forward pass.

    The modules that the network calls before ``branch_from`` are its trunk.
    A branch is a second network of the same config in which each of them is
    replaced by a stand-in that returns what the trunk of the first network
    has returned for the same images. So the trunk runs once, and a branch
    runs the network's own ``forward`` with all that it does between its
    modules (pooling, joining, reshaping). Nothing is assumed of a backbone
    but that it calls the same modules in the same order each time, and that
    is checked by :meth:`check`.

    Args:
        net (nn.Module): A classifier of mmpretrain's kind.
        branch_from (str): Name of the first module of its own that each
            branch has, such as ``'backbone.layer3'``.
        images (Tensor): Two images at least, ``(B, C, H, W)``.

    Raises:
        ValueError: If there is no such module, or it is not called.
    """

    def __init__(self, net: nn.Module, branch_from: str, images: Tensor) -> None:
        names = {module: name for name, module in net.named_modules()}
        if branch_from not in names.values() or not branch_from:
            raise ValueError(
                f'branch_from={branch_from!r} is no module of the '
                f'architecture; {_nearest(branch_from, names.values())}.'
            )
        self.branch_from = branch_from
        finished, self.own, self.divided = _trace(net, names, branch_from, images)
        if branch_from not in self.own:
            raise ValueError(
                f'branch_from={branch_from!r} is not called by the '
                'architecture; give a module that its forward pass goes '
                f'through: {_direct(finished)}.'
            )
        # Called before the branches start, anywhere; and by a module that
        # the branches run again, so that its output is asked for again.
        self.trunk = {name for name, _ in finished}
        self.replayed = sorted(
            {name for name, parents in finished if self.divided.issuperset(parents)}
        )

    @contextmanager
    def record(self, net: nn.Module) -> Iterator[Tape]:
        """Keep what the trunk returns in the forward pass inside.

        Args:
            net (nn.Module): The network.

        Yields:
            Tape: Filled by the pass.
        """
        tape = Tape()
        handles = []

        def keep(name):

            def hook(module, args, output):
                # A module may be called on both sides, as pooling of VGG.
                if tape.feature is None:
                    tape.outputs.setdefault(name, []).append(output)

            return hook

        def divide(module, args, kwargs):
            if tape.feature is None:
                tape.feature = _first_tensor((*args, *kwargs.values()))

        try:
            for name in self.replayed:
                handles.append(net.get_submodule(name).register_forward_hook(keep(name)))
            handles.append(
                net.get_submodule(self.branch_from).register_forward_pre_hook(
                    divide, with_kwargs=True
                )
            )
            yield tape
        finally:
            for handle in handles:
                handle.remove()

    def make_branch(self, net: nn.Module, fresh: nn.Module) -> None:
        """Turn a network into a branch of another one.

        It keeps the parameters that belong to the branch. Parameters of
        modules that are divided (a class token, position embeddings) stay
        those of ``net``, which alone registers them.

        Args:
            net (nn.Module): The network that has the trunk.
            fresh (nn.Module): One of the same config, changed in place.
        """
        # The deepest first, so that parents take mended children over.
        for name, module in reversed(list(fresh.named_modules())):
            # A layer that works in place would change what others replay.
            if getattr(module, 'inplace', False):
                module.inplace = False
            fate = self._fate(name)
            if name in self.replayed:
                _set_module(fresh, name, StandIn(name, module, called_again=fate == 'own'))
            elif fate == 'trunk':
                _set_module(fresh, name, _without_parameters(module))
            elif fate == 'divided':
                shared = net.get_submodule(name)._parameters
                for key in list(module._parameters):
                    del module._parameters[key]
                    module.__dict__[key] = shared[key]

    @torch.no_grad()
    def check(self, net: nn.Module, branch: nn.Module, images: Tensor) -> Tensor:
        """With the network's weights a branch gives the network's logits.

        Args:
            net (nn.Module): The network.
            branch (nn.Module): A branch of it; its weights are as before
                afterwards.
            images (Tensor): Two images at least, ``(B, C, H, W)``.

        Returns:
            Tensor: The feature that the branches start from.

        Raises:
            ValueError: If it does not, or the logits are none.
        """
        before = copy.deepcopy(branch.state_dict())
        weights = net.state_dict()
        modes = net.training, branch.training
        net.eval()
        branch.eval()
        try:
            branch.load_state_dict(
                {key: weights[key.replace(f'.{StandIn.OWN}.', '.')] for key in before}
            )
            with self.record(net) as tape:
                logits = net(images, None, mode='tensor')
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                raise ValueError(
                    'architecture gives no logits (B, classes) in '
                    f"mode='tensor', but {_describe(logits)}; end it with a "
                    'head for classification.'
                )
            if tape.feature is None:
                raise ValueError(
                    f'branch_from={self.branch_from!r} is called without a '
                    'tensor, so the gate has no input; choose another '
                    'module.'
                )
            same = self._same(logits, branch, images, tape)
        finally:
            branch.load_state_dict(before)
            net.train(modes[0])
            branch.train(modes[1])
        if not same:
            raise ValueError(
                f'branch_from={self.branch_from!r} does not divide the '
                'architecture cleanly: a branch with the same weights gives '
                'other logits; choose a module that starts a stage.'
            )
        return tape.feature

    def _same(self, logits: Tensor, branch: nn.Module, images: Tensor, tape: Tape) -> bool:
        """Whether a branch repeats the logits and leaves the tape alone."""
        kept = [
            output
            for outputs in tape.outputs.values()
            for output in outputs
            if isinstance(output, Tensor)
        ]
        versions = [output._version for output in kept]
        try:
            with replay(branch, tape):
                repeated = branch(images, None, mode='tensor')
        except Exception:  # A stand-in may be asked for anything.
            return False
        unchanged = versions == [output._version for output in kept]
        tolerance = 1e-4 * float(logits.abs().max())
        return (
            unchanged
            and repeated.shape == logits.shape
            and bool(((repeated - logits).abs() <= tolerance).all())
        )

    def _fate(self, name: str) -> str:
        """What becomes of a module's parameters in a branch."""
        while True:
            if name in self.divided:
                return 'divided'
            if name in self.own:
                return 'own'
            if name in self.trunk:
                return 'trunk'
            name = name.rpartition('.')[0]


class StandIn(nn.Module):
    """In a branch: returns what a module of the trunk has returned.

    Args:
        source (str): Name of that module.
        module (nn.Module): The same module of the branch's network.
        called_again (bool): The module is also called in the branch; these
            calls are computed.
    """

    OWN = 'called_again'

    def __init__(self, source: str, module: nn.Module, called_again: bool) -> None:
        super().__init__()
        self.source = source
        self.outputs: List[Any] = []
        if called_again:
            self.add_module(self.OWN, module)
        else:
            # Code may reach through it, as CIFARWideResNet's forward does.
            for name, child in module.named_children():
                self.add_module(name, child)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The next recorded output.

        Raises:
            RuntimeError: If the trunk was called less often.
        """
        if self.outputs:
            return self.outputs.pop(0)
        if self.OWN in self._modules:
            return self._modules[self.OWN](*args, **kwargs)
        raise RuntimeError(
            f'a branch calls {self.source} more often than the trunk has '
            'called it; the forward pass must not be random in what it '
            'calls.'
        )


@contextmanager
def replay(branch: nn.Module, tape: Tape) -> Iterator[None]:
    """Let a branch's forward pass start from a trunk's outputs.

    Args:
        branch (nn.Module): Made by :meth:`BranchPoint.make_branch`.
        tape (Tape): Recorded for the same images.
    """
    stand_ins = [module for module in branch.modules() if isinstance(module, StandIn)]
    try:
        for stand_in in stand_ins:
            stand_in.outputs = list(tape.outputs.get(stand_in.source, ()))
        yield
    finally:
        for stand_in in stand_ins:
            stand_in.outputs = []


def _set_module(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in another one's place."""
    parent, _, child = name.rpartition('.')
    net.get_submodule(parent).add_module(child, module)


def _without_parameters(module: nn.Module) -> nn.Module:
    """What is left of a module of the trunk: the way to its children.

    No husk of a batch norm: loading weights would look for its statistics.
    """
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return module
    husk = nn.Module()
    for name, child in module.named_children():
        husk.add_module(name, child)
    return husk


@torch.no_grad()
def _trace(
    net: nn.Module, names: Dict[nn.Module, str], branch_from: str, images: Tensor
) -> Tuple[List[tuple], Set[str], Set[str]]:
    """Calls in order of one forward pass.

    Returns:
        tuple: Calls that were finished before the branches start, each with
        the names of the modules that called; modules called from there on;
        modules that were running then.
    """
    stack: List[str] = []
    finished: List[tuple] = []
    own: Set[str] = set()
    divided: Set[str] = set()

    def enter(module, args):
        name = names[module]
        if name == branch_from and not own:
            divided.update(stack)
        if own or name == branch_from:
            own.add(name)
        stack.append(name)

    def leave(module, args, output):
        name = stack.pop()
        if not own:
            finished.append((name, tuple(stack)))

    handles = []
    training = net.training
    net.eval()
    try:
        for module in names:
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(leave))
        net(images, None, mode='tensor')
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        raise ValueError(
            f'input_shape={tuple(images.shape[1:])} does not go through the '
            f'architecture: {error}; set model.input_shape to channels, '
            'height and width of one image, or mend '
            'model.architecture.'
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        net.train(training)
    return finished, own, divided


def _first_tensor(values: Sequence[Any]) -> Optional[Tensor]:
    """The first tensor; of a tuple of maps the last one, as heads take it."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, (list, tuple)):
            found = _first_tensor(value[::-1])
            if found is not None:
                return found
    return None


def _direct(finished: List[tuple]) -> str:
    """Names of the first few modules that a backbone calls."""
    names = dict.fromkeys(name for name, parents in finished if len(parents) <= 2 and name)
    return ', '.join(list(names)[:12])


def _nearest(wanted: Any, known: Any) -> str:
    """Names that may have been meant."""
    known = [name for name in known if name]
    ends = [name for name in known if name.endswith(f'.{wanted}')]
    close = difflib.get_close_matches(str(wanted), known, n=3, cutoff=0.5)
    found = list(dict.fromkeys(ends[:2] + close))[:3]
    return (
        f'the nearest are {", ".join(found)}'
        if found
        else (f'there are {", ".join(known[:8])} ...')
    )


def _describe(value: Any) -> str:
    """Kind and shape of what was found."""
    shape = f' {tuple(value.shape)}' if isinstance(value, Tensor) else ''
    return type(value).__name__ + shape
