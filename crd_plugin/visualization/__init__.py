"""Tables and plots of what was trained."""
from .results import RunResult, plot_curves, read_run, render_table, summarise

__all__ = ['RunResult', 'plot_curves', 'read_run', 'render_table', 'summarise']
