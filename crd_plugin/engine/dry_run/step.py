"""One training step on random data, watched closely."""

from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from .report import ConnectorRow, DryRunReport, LossRow, describe


class Probe:
    """Stands in for the optimizer wrapper and takes no step.

    Gradients of each loss alone are measured where the wrapper would
    go backward; then it does go backward.

    Args:
        model (nn.Module): The model; its ``parse_losses`` is listened to.
        wrapper (OptimWrapper): What the config asks for.
        report (DryRunReport): Takes the losses.
    """

    def __init__(self, model: nn.Module, wrapper: OptimWrapper, report: DryRunReport) -> None:
        self.model = model
        self.wrapper = wrapper
        self.report = report
        self.losses: Dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Everything else is the wrapper's."""
        return getattr(self.wrapper, name)

    def run(self, data: Dict[str, Any]) -> None:
        """Train on one batch through the model's own ``train_step``.

        Args:
            data (dict): As the data loader gives it.
        """
        parse = self.model.parse_losses

        def listen(losses):
            self.losses = dict(losses)
            return parse(losses)

        self.model.parse_losses = listen
        try:
            self.model.train_step(data, optim_wrapper=self)
        finally:
            del self.model.parse_losses

    def optim_context(self, model: nn.Module) -> Any:
        """The wrapper's: mixed precision, accumulation."""
        return self.wrapper.optim_context(model)

    def update_params(self, loss: Tensor, **kwargs) -> None:
        """Measure, and go backward.

        Args:
            loss (Tensor): Sum of the losses.
        """
        student, connectors, teacher = parameters_of(self.model)
        self.report.losses = []
        for name, value in self.losses.items():
            value = mean_of(value)
            if value is None:
                continue
            self.report.losses.append(
                LossRow(
                    name,
                    float(value),
                    'loss' in name,
                    gradient_norm(value, student),
                    gradient_norm(value, connectors),
                    gradient_norm(
                        value, teacher, 'frozen' if hasattr(self.model, 'teacher') else '-'
                    ),
                )
            )
        if not torch.isfinite(loss).all():
            self.report.problem(
                f'the sum of the losses is {float(loss)}; see which one in the table.'
            )
        self.wrapper.backward(loss)


def parameters_of(model: nn.Module) -> Tuple[List[Tensor], List[Tensor], List[Tensor]]:
    """Trainable parameters of student, distiller and teacher.

    Args:
        model (nn.Module): A distillation or a plain model.

    Returns:
        tuple: Three lists of parameters; where there is no distiller, the
        second has all that belong neither to the student nor to a teacher.
    """
    parts = []
    for part in (
        getattr(model, 'architecture', model),
        getattr(model, 'distiller', None),
        getattr(model, 'teacher', None),
    ):
        found = part.parameters() if isinstance(part, nn.Module) else ()
        parts.append([p for p in found if p.requires_grad])
    if not hasattr(model, 'distiller'):
        known = {id(p) for part in parts for p in part}
        parts[1] = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    return tuple(parts)


def mean_of(value: Any) -> Optional[Tensor]:
    """A loss as MMEngine counts it: means, added up over a list."""
    if isinstance(value, Tensor):
        return value.float().mean()
    if isinstance(value, (list, tuple)) and value:
        return sum(item.float().mean() for item in value)
    return None


def gradient_norm(
    loss: Tensor, parameters: Iterable[Tensor], nothing: str = '-'
) -> Union[float, str]:
    """L2 norm of a loss's gradient.

    Args:
        loss (Tensor): Scalar.
        parameters (Iterable[Tensor]): With respect to these.
        nothing (str): Returned when there are none. Defaults to '-'.

    Returns:
        float | str: The norm, or why there is none.
    """
    parameters = list(parameters)
    if not parameters:
        return nothing
    if not loss.requires_grad:
        return 'none'
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    norms = [g.float().norm() for g in gradients if g is not None]
    return float(torch.stack(norms).norm()) if norms else 'none'


def check_gradients(model: nn.Module, report: DryRunReport) -> None:
    """Losses that reach nothing, and a teacher that is reached.

    Args:
        model (nn.Module): After the step.
        report (DryRunReport): Holds the losses; takes the problems.
    """
    distilling = hasattr(model, 'teacher')
    trained = getattr(model, 'teacher_trainable', False)
    for row in report.losses:
        if (
            row.summed
            and distilling
            and not any(
                isinstance(norm, float) for norm in (row.student, row.connectors, row.teacher)
            )
        ):
            report.problem(
                f'{row.name} sends no gradient anywhere; check from_student '
                'in its loss_forward_mappings: one argument at least must '
                'come from the student.'
            )
        for norm in (row.student, row.connectors):
            if isinstance(norm, float) and norm != norm:
                report.problem(
                    f'{row.name} has the gradient NaN; lower its weight, or compute it in float32.'
                )
    if not distilling or trained:
        return
    reached = [
        name
        for name, p in model.teacher.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    ]
    if reached:
        report.problem(
            f'the gradient reaches the teacher ({reached[0]} and '
            f'{len(reached) - 1} more); use crd_plugin.FrozenTeacherDistill, '
            'or teacher_trainable=False.'
        )


def watch_connectors(model: nn.Module, report: DryRunReport) -> List[Any]:
    """Note the shapes that go through each connector.

    Args:
        model (nn.Module): The model.
        report (DryRunReport): Takes the rows.

    Returns:
        list: Handles to remove when the step is done.
    """
    handles = []
    distiller = getattr(model, 'distiller', None)
    for name, connector in getattr(distiller, 'connectors', {}).items():
        row = ConnectorRow(name, type(connector).__name__, '-', '-', count(connector)[1])
        report.connectors.append(row)

        def hook(module, args, output, row=row):
            row.inputs = ', '.join(describe(arg) for arg in args)
            row.output = describe(output)

        handles.append(connector.register_forward_hook(hook))
    return handles


def count(module: nn.Module) -> Tuple[int, int]:
    """Trainable and all parameters of a module."""
    parameters = list(module.parameters())
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return trainable, sum(p.numel() for p in parameters)
