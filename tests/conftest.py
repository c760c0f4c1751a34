"""Settings of the whole suite."""
import os

# Two processes of the distributed tests share the cores of a small machine.
os.environ.setdefault('OMP_NUM_THREADS', '2')
os.environ.setdefault('MPLBACKEND', 'Agg')

# First of all, because it mends what the tests import from upstream.
import crd_plugin  # noqa: E402,F401
