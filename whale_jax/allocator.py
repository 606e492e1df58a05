"""Keeps the C allocator from handing memory back between steps."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Makes malloc reuse freed memory; call it before JAX starts its threads. True where it took effect.

    XLA's CPU backend allocates each program's buffers anew. By default glibc maps and unmaps them every time, and
    the page faults cost a third of a training step.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        return all(
            libc.mallopt(option, value)
            for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_ARENA_MAX, 1))
        )
    except (OSError, AttributeError):
        return False
