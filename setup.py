"""Builds the package with its configs and tools inside."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What `mim` and `mmpretrain::`-like inheritance look for in `<package>/.mim`.
MIM_CONTENT = ('configs', 'tools', 'model-index.yml')


class BuildWithMim(build_py):
    """Also puts configs and tools into ``crd_plugin/.mim``.

    OpenMMLab packages usually do so by reading ``sys.argv`` in ``setup.py``,
    which modern pip leaves empty; a build step works for wheels, for source
    distributions and for editable installs alike.
    """

    def run(self) -> None:
        """Build, then add ``.mim``: links if editable, else copies."""
        super().run()
        editable = getattr(self, 'editable_mode', False)
        base = ROOT if editable else Path(self.build_lib)
        mim = base / 'crd_plugin' / '.mim'
        if mim.is_dir():
            shutil.rmtree(mim)
        mim.mkdir(parents=True)
        for name in MIM_CONTENT:
            source = ROOT / name
            if not source.exists():
                continue
            if editable and self._link(source, mim / name):
                continue
            self._copy(source, mim / name)

    @staticmethod
    def _link(source: Path, target: Path) -> bool:
        """Link relatively, so that the checkout may be moved."""
        try:
            target.symlink_to(os.path.relpath(source, target.parent))
        except OSError:  # such as Windows without the right to link
            return False
        return True

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        """Copy a file or a folder without caches."""
        if source.is_file():
            shutil.copy2(source, target)
            return
        ignore = shutil.ignore_patterns('__pycache__', '*.pyc')
        shutil.copytree(source, target, ignore=ignore)


setup(cmdclass={'build_py': BuildWithMim})
