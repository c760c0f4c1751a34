"""What the C library does with memory that is given back to it."""

import ctypes
import os

# Parameters of mallopt() in glibc's malloc.h, and the largest values that it
# takes: an int, and half of the heap of a thread.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER, _LARGEST = 2**31 - 1, 32 << 20

_SETTINGS = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'GLIBC_TUNABLES')


def keep_freed_memory() -> bool:
    """Let glibc keep freed tensors of up to 32 MiB for the next ones.

    By default it gives them back to the system, which has to find and clear
    the same pages again a moment later. For a training step on a CPU that is
    a tenth of its time or more (docs/performance.md). Memory is held until the
    process ends, up to what it needed at most.

    Settings of the user in the environment are left alone.

    Returns:
        bool: Whether it took effect; False where there is another C library.
    """
    if any(name in os.environ for name in _SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        # No glibc; on Windows, CDLL(None) is a TypeError.
        return False
    # All must be called, whatever the first one says.
    done = [mallopt(_TRIM_THRESHOLD, _NEVER), mallopt(_MMAP_THRESHOLD, _LARGEST)]
    return all(done)
