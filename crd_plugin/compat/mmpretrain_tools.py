"""Run the scripts that MMPretrain ships, repaired for today's packages."""

import sys
from collections.abc import Sequence
from pathlib import Path

# Script: what its text says, and what it should say. A version that says something else is run as
# it is. Upstream reports: none known.
REPAIRS = {
    # Breaks: Matplotlib 3.8 asks for the renderer.
    'browse_dataset': {
        'transforms.Bbox(points))': 'transforms.Bbox(points), figure.canvas.get_renderer())',
    },
    # Breaks: scikit-learn 1.7 knows no `n_iter`, which has been `max_iter` since 1.5.
    'vis_tsne': {'n_iter=args.n_iter,': 'max_iter=args.n_iter,'},
    # Breaks: setuptools 82 has no `pkg_resources`; grad-cam 1.5 finds the device by itself.
    'vis_cam': {
        'import pkg_resources': 'import importlib.metadata as pkg_resources',
        "pkg_resources.get_distribution('grad_cam').version": "pkg_resources.version('grad-cam')",
        ', use_cuda=use_cuda)': ')',
    },
}


def scripts() -> dict[str, Path]:
    """Find the scripts of the installed MMPretrain, by name without suffix."""
    from mmengine.utils import get_installed_path

    folder = Path(get_installed_path('mmpretrain'), '.mim', 'tools')
    return {path.stem: path for path in sorted(folder.rglob('*.py'))}


def run_script(path: Path, argv: Sequence[str]) -> None:
    """Run a script of MMPretrain, repaired, as if it were called from the command line."""
    text = path.read_text()
    for broken, sound in REPAIRS.get(path.stem, {}).items():
        text = text.replace(broken, sound)
    sys.argv = [str(path), *argv]
    exec(compile(text, str(path), 'exec'), {'__name__': '__main__', '__file__': str(path)})
