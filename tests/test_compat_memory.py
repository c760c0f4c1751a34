"""Memory that the C library keeps."""

import sys
import textwrap

import pytest

from crd_plugin import compat
from crd_plugin.compat import memory
from tests.test_compat import run_python

FAULTS = """
    import resource, sys
    from crd_plugin import compat
    import torch
    took_effect = sys.argv[1:] and compat.keep_freed_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        kept = [torch.ones(1 << 20) for _ in range(48)]
        del kept
    after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(took_effect, after - before)
"""


def page_faults(*args):
    """Of five times 192 MiB, which are 49,152 pages."""
    code = f'import sys; sys.argv[1:] = {list(args)!r}\n' + (textwrap.dedent(FAULTS))
    took_effect, number = run_python(code).stdout.split()
    return took_effect == 'True', int(number)


GLIBC = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='glibc is asked')


@GLIBC
def test_freed_memory_is_kept(monkeypatch):
    for name in memory._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    _, default = page_faults()
    took_effect, kept = page_faults('keep')
    assert took_effect
    assert kept < 0.7 * default


@GLIBC
def test_memory_settings_of_the_user_stand(monkeypatch):
    monkeypatch.setenv('MALLOC_TRIM_THRESHOLD_', '131072')
    took_effect, number = page_faults('keep')
    assert not took_effect and number > 80000


@pytest.mark.parametrize('error', [AttributeError, OSError, TypeError])
def test_other_c_libraries_are_left_alone(monkeypatch, error):

    def no_glibc(name):
        raise error

    for name in memory._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, 'CDLL', no_glibc)
    assert compat.keep_freed_memory() is False
