"""Tables and plots of what was trained."""

from .comparison import (
    compare,
    read_metafile,
    read_table_runs,
    render_csv,
    render_json,
    render_markdown,
)
from .results import RunResult, plot_curves, read_run, render_table, summarise

__all__ = [
    'RunResult',
    'compare',
    'plot_curves',
    'read_metafile',
    'read_run',
    'read_table_runs',
    'render_csv',
    'render_json',
    'render_markdown',
    'render_table',
    'summarise',
]
