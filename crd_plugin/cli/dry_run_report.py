"""What a dry run finds, and how it is printed."""

from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from crd_plugin.ops import gradient_norm

from .lookup import describe

# What a network is given, behind its view: range and mean over the batch.
InputRow = namedtuple('InputRow', 'network images min max mean')
# Shapes of what a recorder holds after the step.
RecorderRow = namedtuple('RecorderRow', 'side name type source output')
# Shapes before and after a connector, and its number of parameters.
ConnectorRow = namedtuple('ConnectorRow', 'name type inputs output parameters')
# A loss, whether it is part of the sum, and the L2 norm of its gradient (or why there is none)
# with respect to the student, the teacher, and all other parts: connectors, losses, branches.
LossRow = namedtuple('LossRow', 'name value summed student others teacher')
# A bank at full size, None if that is unknown; `stand_in` rows were used instead.
BankRow = namedtuple('BankRow', 'name rows width mib stand_in')
# Numbers of parameters of a part of the model.
PartRow = namedtuple('PartRow', 'part trainable total')
# Titles and headers that are not called as their field.
_NAMES = dict(
    banks='Memory banks',
    parts='Parameters',
    summed='',
    student='gradient: student',
    others='other parts',
    rows='rows per side',
    mib='MiB',
    stand_in='rows here',
)


@dataclass
class DryRunReport:
    """Everything that a dry run finds.

    Attributes:
        config, data, images, teacher (str): Head of the report.
        inputs, recorders, connectors, losses, banks, parts (list): Rows of the tables.
        notes (list[str]): What a user should know although training would start.
        problems (list[str]): One line each: place in the config, cause and fix.
        seconds (float): Duration.
        error (BaseException, optional): What the last problem was raised as.
    """

    config: str
    data: str = ''
    images: str = ''
    teacher: str = ''
    inputs: list[InputRow] = field(default_factory=list)
    recorders: list[RecorderRow] = field(default_factory=list)
    connectors: list[ConnectorRow] = field(default_factory=list)
    losses: list[LossRow] = field(default_factory=list)
    banks: list[BankRow] = field(default_factory=list)
    parts: list[PartRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    error: BaseException | None = None


@contextmanager
def watch(model: nn.Module, report: DryRunReport) -> Iterator[None]:
    """Write what the networks are given first, and what connectors make of it, into a report."""
    connectors = getattr(getattr(model, 'distiller', None), 'connectors', {})

    def see_network(name: str, _: nn.Module, given: tuple) -> None:
        if given and isinstance(given[0], Tensor) and all(r.network != name for r in report.inputs):
            images = given[0].detach().float()
            spread = (float(x) for x in (images.min(), images.max(), images.mean()))
            report.inputs.append(InputRow(name, describe(given[0]), *spread))
            report.inputs.sort()  # the student first

    def see_connector(name: str, connector: nn.Module, given: tuple, output: Any) -> None:
        if all(row.name != name for row in report.connectors):
            number, kind = sum(p.numel() for p in connector.parameters()), type(connector).__name__
            row = ConnectorRow(name, kind, describe(given[0]), describe(output), number)
            report.connectors.append(row)

    with ExitStack() as handles:
        for name, part in (('student', 'architecture'), ('teacher', 'teacher')):
            if getattr(model, part, None):
                hook = partial(see_network, name)
                handles.callback(getattr(model, part).register_forward_pre_hook(hook).remove)
        for name, connector in connectors.items():
            hook = partial(see_connector, name)
            handles.callback(connector.register_forward_hook(hook).remove)
        yield


def read_recorders(model: nn.Module, cfg: Mapping[str, Any]) -> Iterator[RecorderRow]:
    """Shapes of what recorders hold."""
    for side in ('student', 'teacher'):
        manager = getattr(getattr(model, 'distiller', None), f'{side}_recorders', None)
        for name, recorder in getattr(manager, 'recorders', {}).items():
            records = recorder.data_buffer
            output = describe(records[0]) if records else 'nothing'
            output += f', {len(records)} times' if len(records) > 1 else ''
            kind = cfg['distiller'][f'{side}_recorders'][name]['type']
            yield RecorderRow(side, name, kind, recorder.source, output)


def measure(model: Any, losses: Mapping[str, Any], prefix: str) -> list[LossRow]:
    """Measure the gradient that each loss sends to the parts of a model."""
    parts = [getattr(model, 'architecture', model), getattr(model, 'teacher', nn.Module())]
    student, teacher = ([p for p in part.parameters() if p.requires_grad] for part in parts)
    known = {id(p) for p in student + teacher}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    rows = []
    for name, value in losses.items():
        terms = [value] if isinstance(value, Tensor) else value
        loss = torch.stack([term.float().mean() for term in terms]).sum()  # as MMEngine does
        norms: list[float | str] = []
        for part in (student, others, teacher):
            norm = gradient_norm(loss, part)
            norms.append(norm if norm is not None else 'none' if part else '-')
        if hasattr(model, 'teacher') and not teacher:
            norms[2] = 'frozen'
        rows.append(LossRow(prefix + name, float(loss), 'loss' in name, *norms))
    return rows


def count_parameters(model: nn.Module) -> list[PartRow]:
    """Numbers of parameters of student, teacher, connectors and so on; of a plain model in all."""
    parts = dict(model.named_children()) if hasattr(model, 'architecture') else {'model': model}
    parts.update(parts.pop('distiller', nn.Module()).named_children())
    rows = []
    for name, part in parts.items():
        total = sum(p.numel() for p in part.parameters())
        trainable = sum(p.numel() for p in part.parameters() if p.requires_grad)
        name = {'architecture': 'student', 'distill_losses': 'losses'}.get(name, name)
        rows += [PartRow(name.replace('_', ' '), trainable, total)] if total else []
    return rows


def render(report: DryRunReport) -> str:
    """Lay a report out as text: tables, notes and a summary, without the problems."""
    head = {name: getattr(report, name) for name in ('config', 'data', 'images', 'teacher')}
    blocks = ['\n'.join(f'{name.capitalize():<9}{text}' for name, text in head.items() if text)]
    for table in ('inputs', 'recorders', 'connectors', 'losses', 'banks', 'parts'):
        rows = getattr(report, table)
        if rows:
            header = [_NAMES.get(name, name) for name in rows[0]._fields]
            lines = [header, *(list(map(_cell, row)) for row in rows)]
            widths = [max(map(len, column)) for column in zip(*lines)]
            filled = ('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)
            blocks.append('\n  '.join([_NAMES.get(table, table.capitalize()), *filled]))
    blocks.append('\n'.join(f'note: {note}' for note in report.notes))
    number = len(report.problems)
    result = f'{number} problem{"s" if number > 1 else ""}' if number else 'fine'
    blocks.append(f'{result} ({report.seconds:.1f} s)')
    return '\n\n'.join(block for block in blocks if block) + '\n'


def _cell(value: Any) -> str:
    """Text of a cell."""
    if isinstance(value, bool):  # whether a loss counts
        return '' if value else 'not summed'
    if value is None:
        return 'unknown'
    if isinstance(value, float):
        return f'{value:.4g}'
    return f'{value:,}' if isinstance(value, int) else str(value)
