"""Show what a distillation does while it trains."""

import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from crd_plugin.models._numbers import count
from crd_plugin.models.losses import CRDLoss
from crd_plugin.ops import alignment, full_precision, gradient_norm, no_autocast, uniformity
from crd_plugin.ops.negatives import random_rows
from crd_plugin.registry import HOOKS

# Rows of a bank whose scores are shown.
_MOST_ROWS = 4096
_EDGES = np.linspace(-1, 1, 41)
# Cosines of positives and of negatives.
Cosines = tuple[Tensor, Tensor]


@HOOKS.register_module()
class LiveViewHook(Hook):
    """Hand numbers and a figure of a distillation to the visualizer while it trains.

    In the first iteration, and in one of every ``interval`` from there on, it looks at the step
    that is taken anyway; weights and random numbers are the same bits with and without it. The
    scalars ``live/...`` are ``mi_bound``, ``log_k``, alignment and uniformity (Wang and Isola,
    arXiv:2005.10242) of each :class:`CRDLoss` for this batch, and the share of each loss in the
    norms of the gradients of the student's backbone. The figure ``live`` has them as curves, and
    histograms of the cosines of positives and negatives: with a memory bank, those of anchors and
    at most 4,096 random rows; without one, those within the batch; all of rank 0.

    Args:
        interval (int): Iterations from one look to the next. Defaults to 500.

    Raises:
        ValueError: If ``interval`` is not a positive integer.
    """

    def __init__(self, interval: int = 500) -> None:
        self.interval = count('interval', interval, ' (iterations)')
        self._with_gradients = True
        self._handles: list[Any] = []
        # Of this iteration; then iterations and values of each scalar.
        self._scalars: dict[str, float] = {}
        self._cosines: dict[str, list[Cosines]] = {}
        self._history: dict[str, list[tuple[int, float]]] = {}

    def before_train(self, runner: Any) -> None:
        """Leave gradients out where parts of the forward pass would be repeated for them."""
        checkpointed = any(getattr(m, 'with_cp', False) for m in runner.model.modules())
        self._with_gradients = not checkpointed
        if checkpointed:
            runner.logger.warning(
                'LiveViewHook shows no share of gradients: with_cp=True repeats parts of the '
                'forward pass, so measuring them would change running statistics.'
            )

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Prepare to look at this step, if its turn has come."""
        if runner.iter % self.interval:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        scaler = getattr(runner.optim_wrapper, 'loss_scaler', None)
        # Without its factor, gradients of float16 activations would vanish.
        scale = scaler.get_scale() if scaler else 1.0
        look = partial(self._look_at_gradients, scale)
        if self._with_gradients:  # on all ranks: the backward pass of some losses is a collective
            self._handles.append(model.register_forward_hook(look))
        if is_main_process():
            for name, module in model.named_modules():
                if isinstance(module, CRDLoss):
                    look = partial(self._look_at_embeddings, name.rpartition('distill_losses.')[2])
                    self._handles.append(module.register_forward_hook(look, with_kwargs=True))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Show what was seen in this step, if it was looked at."""
        if not self._handles:
            return
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if is_main_process() and self._scalars:
            step = runner.iter + 1
            for key, value in self._scalars.items():
                self._history.setdefault(key, []).append((step, value))
            scalars = {f'live/{key}': value for key, value in self._scalars.items()}
            runner.visualizer.add_scalars(scalars, step=step)
            runner.visualizer.add_image('live', draw(self._history, self._cosines), step)
        self._scalars, self._cosines = {}, {}

    def _look_at_gradients(self, scale: float, model: nn.Module, args: Any, output: Any) -> None:
        """Measure the gradient of each loss in the output of the model."""
        student: Any = getattr(model, 'architecture', model)
        shared = getattr(student, 'backbone', student)
        parameters = [p for p in shared.parameters() if p.requires_grad]
        norms = {}
        for name, value in output.items():
            if 'loss' in name:  # as MMEngine chooses what it adds up
                terms = [value] if isinstance(value, Tensor) else value
                loss = torch.stack([term.mean() for term in terms]).sum() * scale
                with no_autocast(loss):
                    norms[name] = gradient_norm(loss, parameters) or 0.0
        total = sum(norms.values())
        if 0 < total < float('inf'):
            shares = {f'gradient_share/{name}': norm / total for name, norm in norms.items()}
            self._scalars.update(shares)

    @torch.no_grad()
    def _look_at_embeddings(
        self, name: str, loss: CRDLoss, args: Any, kwargs: Any, output: Tensor
    ) -> None:
        """Measure the embeddings that a contrastive loss was given, before the bank changes."""
        given = inspect.signature(loss.forward).bind(*args, **kwargs).arguments
        student, teacher = (full_precision(given[key]) for key in ('s_feats', 't_feats'))
        if len(student) < 2:
            return
        with no_autocast(student):
            numbers: dict[str, Any] = dict(
                mi_bound=loss.mi_bound,
                log_k=loss.log_k,
                alignment=alignment(student, teacher),
                uniformity_student=uniformity(student),
                uniformity_teacher=uniformity(teacher),
            )
            self._scalars.update({f'{name}/{key}': float(value) for key, value in numbers.items()})
            ids: Any = given.get('sample_idx')
            if loss.bank is None:
                key = given.get('labels') if loss.exclude == 'class' else ids
                self._cosines[name] = batch_cosines(student, teacher, key)
            else:
                self._cosines[name] = bank_cosines(loss, student, teacher, ids)


def bank_cosines(
    loss: CRDLoss, student: Tensor, teacher: Tensor, sample_idx: Tensor
) -> list[Cosines]:
    """Return the cosines of positives and of this rank's negatives, for anchors of both sides."""
    bank, shards = loss.bank, loss.bank.shards()
    keys = bank.keys(loss.exclude if bank.labels.numel() else 'instance').key
    kept, device = len(bank.teacher), student.device
    # A generator of its own leaves the random numbers of the run alone.
    own = torch.Generator().manual_seed(0)
    rows = random_rows(kept, min(kept, _MOST_ROWS), torch.device('cpu'), own).to(device)
    differs = keys[sample_idx][:, None] != keys[shards.rank :: shards.world][rows]
    here = sample_idx % shards.world == shards.rank
    place = sample_idx[here] // shards.world
    found = []
    for anchors, stored in ((student, bank.teacher), (teacher, bank.student)):
        positives = (anchors[here] * stored[place]).sum(1)
        found.append((positives, (anchors @ stored[rows].to(anchors.dtype).t())[differs]))
    return found


def batch_cosines(student: Tensor, teacher: Tensor, key: Tensor | None) -> list[Cosines]:
    """Return the cosines within a batch, as :func:`bank_cosines` does."""
    if key is None:
        key = torch.arange(len(student), device=student.device)
    cosines = student @ teacher.t()
    differs = key[:, None] != key
    return [(each.diagonal(), each[differs]) for each in (cosines, cosines.t())]


def draw(
    history: Mapping[str, list[tuple[int, float]]], cosines: Mapping[str, list[Cosines]]
) -> np.ndarray:
    """Draw all curves and the latest histograms, ``(H, W, 3)`` uint8 RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shares = [name for name in history if name.startswith('gradient_share/')]
    rows = len(cosines) + bool(shares)
    figure = Figure(figsize=(13, 3.2 * rows), dpi=80, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 3)

    def curves(place: Any, title: str, names: Iterable[str]) -> Any:
        axes = figure.add_subplot(place)
        for name in names:
            axes.plot(*zip(*history[name]), label=name.partition('/')[2], marker='.')
        axes.set(xlabel='iteration', title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        return axes

    for row, (name, (of_student, of_teacher)) in enumerate(cosines.items()):
        curves(grid[row, 0], f'{name}: bound, nats', [f'{name}/mi_bound', f'{name}/log_k'])
        measures = ('alignment', 'uniformity_student', 'uniformity_teacher')
        curves(grid[row, 1], f'{name}: embeddings', [f'{name}/{each}' for each in measures])
        axes = figure.add_subplot(grid[row, 2])
        for number, (kind, colour) in enumerate((('positives', 'C2'), ('negatives', 'C3'))):
            sides = dict(student=(of_student, '-'), teacher=(of_teacher, ':'))
            for anchors, (pairs, style) in sides.items():
                label = f'{kind}, {anchors} anchors'
                heights = histogram(pairs[number])
                axes.stairs(heights, _EDGES, color=colour, linestyle=style, label=label)
        top = 1.6 * axes.get_ylim()[1]  # room for the legend
        axes.set(xlabel='cosine', title=f'{name}: share of pairs', ylim=(0, top))
        axes.legend(fontsize=8, loc='upper left')
    if shares:
        axes = curves(grid[-1, :], "share of the gradient of the student's backbone", shares)
        axes.set_ylim(-0.03, 1.03)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def histogram(cosines: Tensor) -> np.ndarray:
    """Share of cosines in each bin of [-1, 1]; zeros if there are none."""
    values = cosines.clamp(-1, 1).cpu().numpy()
    return np.histogram(values, _EDGES)[0] / max(values.size, 1)
