"""Settings of the whole suite."""

import functools
import os
from types import SimpleNamespace

# The tensors of tests are small, so a second thread only waits; and runs that are compared bit by
# bit, some of them in other processes, must have the same number of threads.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ.setdefault('MPLBACKEND', 'Agg')

# First of all, because it patches what the tests import from upstream.
import crd_plugin  # isort: skip  # noqa: F401
import mmengine.dataset.base_dataset
import mmengine.runner.runner
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope

# Each data set that is built collects garbage, which takes most of a second with so many modules.
mmengine.dataset.base_dataset.gc = SimpleNamespace(collect=lambda: 0)
# Each runner logs the environment, which starts compilers to ask for their versions.
mmengine.runner.runner.collect_env = functools.cache(mmengine.runner.runner.collect_env)


def pytest_runtest_setup(item):
    """Skip tests marked ``cuda`` where there is no GPU."""
    if item.get_closest_marker('cuda') and not torch.cuda.is_available():
        pytest.skip('needs CUDA')


@pytest.fixture
def mmpretrain_scope():
    """Find types without a prefix in MMPretrain, as a runner does with its configs."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def warned(monkeypatch):
    """Collect the texts of warnings."""
    texts = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text: texts.append(text))
    return texts
