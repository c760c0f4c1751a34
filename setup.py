"""Build the package with its configs and tools inside."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What `mim` and `_base_ = 'crd_plugin::...'` look for in `crd_plugin/.mim`.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Also put configs and tools into ``crd_plugin/.mim``.

    OpenMMLab packages usually do so by reading ``sys.argv`` in ``setup.py``, which modern pip
    leaves empty. A build step works for wheels, source distributions and editable installs.
    """

    def run(self) -> None:
        """Build, then add ``.mim``: links for an editable install, otherwise copies."""
        super().run()
        editable = getattr(self, 'editable_mode', False)
        mim = (ROOT if editable else Path(self.build_lib)) / 'crd_plugin' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for source in filter(Path.exists, (ROOT / name for name in MIM_CONTENT)):
            if not (editable and _link(source, mim / source.name)):
                _copy(source, mim / source.name)


def _link(source: Path, target: Path) -> bool:
    """Link relatively, so that the checkout may be moved; False where links are not allowed."""
    try:
        target.symlink_to(os.path.relpath(source, target.parent))
    except OSError:  # such as Windows without the right to link
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without caches."""
    if source.is_file():
        shutil.copy2(source, target)
    else:
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        shutil.copytree(source, target, ignore=ignore)


setup(cmdclass={'build_py': BuildWithMim})
