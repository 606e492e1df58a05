"""Process settings that must be made before JAX is imported. docs/performance.md measures each of them."""

import ctypes
import os
import sys
from pathlib import Path

# On a CPU, YNNPACK is faster than XLA's own loops for matrix products and slower for the operations around them.
XLA_CPU_FLAG = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare() -> None:
    """Sets the allocator, the XLA flag and the compile cache. Values that the environment sets already stay."""
    keep_memory()
    flags = os.environ.get("XLA_FLAGS", "")
    if XLA_CPU_FLAG.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {XLA_CPU_FLAG}".strip()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # XLA splits programs over the available CPUs, and JAX's cache key does not hold their number.
    if (cache := user_cache()) is not None:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / f"compiled-{_cpus()}"))


def user_cache() -> Path | None:
    """Returns the user's directory for files that can be made anew; None for a user without a home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return home / "whale_jax"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def keep_memory() -> bool:
    """Makes malloc reuse freed memory instead of returning it to the system, and returns whether it took effect.

    XLA's CPU backend allocates new buffers for each program. By default glibc maps and unmaps them every time, and
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
