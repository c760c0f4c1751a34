"""What a dry run found, and how it is printed."""

from dataclasses import dataclass, field
from typing import Any, List, Optional, Sequence, Union

import torch
from torch import Tensor

# Parts that have a name of their own in the tables.
_PARTS = ('model', 'student', 'connectors', 'losses', 'slow student', 'teacher')


@dataclass
class RecorderRow:
    """A recorder and what it has recorded.

    Attributes:
        side (str): ``'student'`` or ``'teacher'``.
        name (str): Key in the config.
        kind (str): Its type in the config.
        source (str): Module, parameter or field.
        output (str): Shape, and type where it is not float32.
    """

    side: str
    name: str
    kind: str
    source: str
    output: str


@dataclass
class ConnectorRow:
    """A connector: shapes before and after, and its parameters."""

    name: str
    kind: str
    inputs: str
    output: str
    parameters: int


@dataclass
class LossRow:
    """A loss, its value and how much gradient it sends where.

    Attributes:
        name (str): Key in the log.
        value (float): Mean over the batch, weighted.
        summed (bool): Whether it is part of what is minimised.
        student, connectors, teacher (float | str): L2 norm of its gradient
            over these parameters, or why there is none. Without a distiller
            ``connectors`` is all that a model has beside its student.
    """

    name: str
    value: float
    summed: bool
    student: Union[float, str]
    connectors: Union[float, str]
    teacher: Union[float, str]


@dataclass
class BankRow:
    """A memory bank at its full size; ``stand_in`` rows in this run."""

    name: str
    rows: Optional[int]
    width: int
    mib: Optional[float]
    stand_in: Optional[int] = None


@dataclass
class PartRow:
    """Parameters of a part of the model."""

    part: str
    trainable: int
    total: int


@dataclass
class DryRunReport:
    """Everything that a dry run found.

    Attributes:
        problems (list[str]): One line each, with the mend.
        notes (list[str]): What a reader should know, but is no mistake.
    """

    config: str = ''
    data: str = ''
    images: str = ''
    teacher: str = ''
    recorders: List[RecorderRow] = field(default_factory=list)
    connectors: List[ConnectorRow] = field(default_factory=list)
    losses: List[LossRow] = field(default_factory=list)
    banks: List[BankRow] = field(default_factory=list)
    parts: List[PartRow] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    problems: List[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """bool: No problem was found."""
        return not self.problems

    def problem(self, message: Any) -> None:
        """Add a problem once, as one line."""
        _add(self.problems, message)

    def note(self, message: Any) -> None:
        """Add a note once, as one line."""
        _add(self.notes, message)


def _add(lines: List[str], message: Any) -> None:
    line = one_line(message)
    if line not in lines:
        lines.append(line)


def one_line(message: Any, most: int = 500) -> str:
    """Collapse white space; cut what is too long to read.

    Args:
        message: Text or exception.
        most (int): Longest line. Defaults to 500 characters.

    Returns:
        str: One line.
    """
    text = message
    if isinstance(message, KeyError) and message.args:
        text = message.args[0]  # str() would quote it
    text = ' '.join(str(text).split()) or type(message).__name__
    return text if len(text) <= most else text[: most - 4] + ' ...'


def describe(record: Any) -> str:
    """Shape of a record, with its type where it is not float32.

    Args:
        record: A tensor, or a sequence or mapping of them.

    Returns:
        str: For example ``(4, 16)`` or ``[(4, 8, 8, 8), (4, 16, 4, 4)]``.
    """
    if isinstance(record, Tensor):
        kind = str(record.dtype).replace('torch.', '')
        suffix = '' if record.dtype == torch.float32 else f' {kind}'
        return f'{tuple(record.shape)}{suffix}'
    if isinstance(record, (list, tuple)):
        return f'[{", ".join(describe(item) for item in record)}]'
    if isinstance(record, dict):
        return ', '.join(f'{key} {describe(item)}' for key, item in record.items())
    return type(record).__name__


def render(report: DryRunReport) -> str:
    """Lay a report out as text.

    Args:
        report (DryRunReport): The report.

    Returns:
        str: Tables, notes and a summary; the problems are not in it.
    """
    parts = [row.part for row in report.parts]
    whose = 'student' if 'student' in parts or report.teacher else 'model'
    # Of a model without distiller: what it has beside the student.
    others = ', '.join(part for part in parts if part not in _PARTS)
    head = (
        ('Config', report.config),
        ('Data', report.data),
        ('Images', report.images),
        ('Teacher', report.teacher),
    )
    blocks = ['\n'.join(f'{name:<9}{text}' for name, text in head if text)]
    blocks += [
        _table(
            'Recorders',
            ('side', 'name', 'type', 'source', 'output'),
            [(row.side, row.name, row.kind, row.source, row.output) for row in report.recorders],
        ),
        _table(
            'Connectors',
            ('name', 'type', 'in', 'out', 'parameters'),
            [
                (row.name, row.kind, row.inputs, row.output, f'{row.parameters:,}')
                for row in report.connectors
            ],
        ),
        _table(
            'Losses',
            ('name', 'value', f'gradient: {whose}', others or 'connectors', 'teacher', ''),
            [
                (
                    row.name,
                    _number(row.value),
                    _number(row.student),
                    _number(row.connectors),
                    _number(row.teacher),
                    '' if row.summed else 'not summed',
                )
                for row in report.losses
            ],
        ),
        _table(
            'Memory banks',
            ('name', 'rows a side', 'width', 'memory', ''),
            [_bank(row) for row in report.banks],
        ),
        _table(
            'Parameters',
            ('part', 'trainable', 'total'),
            [(row.part, f'{row.trainable:,}', f'{row.total:,}') for row in report.parts],
        ),
    ]
    if report.notes:
        blocks.append('\n'.join(f'note: {note}' for note in report.notes))
    number = len(report.problems)
    result = 'fine' if not number else (f'{number} problem{"s" if number > 1 else ""}')
    blocks.append(f'{result} ({report.seconds:.1f} s)')
    return '\n\n'.join(block for block in blocks if block) + '\n'


def _bank(row: BankRow) -> Sequence[str]:
    """Cells of a memory bank."""
    rows = 'unknown' if row.rows is None else f'{row.rows:,}'
    mib = 'unknown' if row.mib is None else f'{row.mib:.2f} MiB'
    note = f'(here {row.stand_in:,} random rows)' if row.stand_in else ''
    return row.name, rows, str(row.width), mib, note


def _number(value: Union[float, str]) -> str:
    return value if isinstance(value, str) else f'{value:.4g}'


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns; nothing without rows."""
    if not rows:
        return ''
    lines = [names, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    text = [
        '  ' + '  '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip()
        for line in lines
    ]
    return '\n'.join([title, *text])
