"""Settings of the process that must be made before JAX is imported; each is measured in docs/performance.md."""

import ctypes
import os
import sys
from pathlib import Path

# On a CPU, YNNPACK is quicker than XLA's own loops for a matrix product and slower for what surrounds it.
XLA_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare() -> None:
    """Allocator, XLA flag and compile cache; what the user's environment sets already is left alone."""
    keep_memory()
    flags = os.environ.get("XLA_FLAGS", "")
    if XLA_CPU_FLAG.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {XLA_CPU_FLAG}".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Programs are split over the CPUs at hand, and JAX's key does not say how many there were.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whale_jax" / f"compiled-{_cpus()}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> bool:
    """Makes malloc reuse freed memory instead of handing it back; True where it took effect.

    XLA's CPU backend allocates each program's buffers anew. By default glibc maps and unmaps them every time, and
    the page faults cost a quarter of a training step.
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
