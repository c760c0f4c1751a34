"""Try a config out: build everything, one step on random data."""

from .report import BankRow, ConnectorRow, DryRunReport, LossRow, PartRow, RecorderRow, render
from .run import dry_run_file, run_dry

__all__ = [
    'BankRow',
    'ConnectorRow',
    'DryRunReport',
    'LossRow',
    'PartRow',
    'RecorderRow',
    'dry_run_file',
    'render',
    'run_dry',
]
