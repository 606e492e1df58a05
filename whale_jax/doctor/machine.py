"""Checks whether this machine can run Whale, and says how to add missing parts: the `whale doctor` command."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path

from whale_jax.base.text import draw

GIB = 2**30
NEEDED_MEMORY, NEEDED_DISK = 6 * GIB, 2 * GIB  # the needs of the quick start, with some room

# The purpose of each optional part. Its packages are read from the installed metadata.
PARTS = {
    "metaworld": "recording and evaluating in Meta-World",
    "oxe": "the Open X-Embodiment mixture",
    "lerobot": "LeRobot datasets",
    "viz": "figures of the report",
    "dev": "the tests",
}

# Runs in its own process: a broken CUDA may abort, and JAX would claim most of the GPU's memory.
_DEVICES = """
import json, jax
memory = lambda device: (device.memory_stats() or {}).get("bytes_limit")
print(json.dumps([(d.platform, d.device_kind, memory(d)) for d in jax.devices()]))
"""


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
      status: "ok", "missing" or "warn".
      advice: what to do; empty if there is nothing to do.
      required: whether Whale cannot run without it.
    """

    name: str
    status: str
    value: str
    advice: str = ""
    required: bool = False


def diagnose() -> list[Check]:
    """Checks Python, JAX, its devices, GL, free memory and disk, and the packages of every part.

    Takes a few seconds, because JAX and GL are started. Neither JAX nor TensorFlow is imported into this process.
    """
    checks = [_python(), *_packages()]
    present = {check.name for check in checks if check.status != "missing"}
    gl = [_gl()] if "[metaworld]" in present else []
    return [*checks, *_devices(), *gl, _memory(), _disk(), _wandb()]


def healthy(checks: list[Check]) -> bool:
    """Returns whether everything that Whale requires is present; optional parts and warnings do not count."""
    return not any(check.required and check.status == "missing" for check in checks)


def to_json(checks: list[Check]) -> str:
    """Returns {"healthy": bool, "checks": [{"name", "status", "value", "advice", "required"}]}."""
    return json.dumps({"healthy": healthy(checks), "checks": [asdict(c) for c in checks]}, indent=2)


def to_text(checks: list[Check], width: int | None = None) -> str:
    """Returns a table for a terminal, without colours: at least one line per check."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "what", "found", "what to do", box=None, pad_edge=False)
    marks = {"ok": "ok", "missing": "--", "warn": "!!"}
    for check in checks:
        texts = (check.name, check.value, check.advice)
        table.add_row(marks[check.status], *(Text(text, overflow="fold") for text in texts))
    return draw(table, width=width or shutil.get_terminal_size((110, 24)).columns)


def _near(path: Path) -> str:
    """Returns a path as a user types it in the current directory, quoted for a shell."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _checkout() -> Path | None:
    """Returns the root of the checkout that this code runs from, or None if it was installed from a wheel."""
    root = Path(__file__).absolute().parents[2]
    return root if (root / "launch" / "setup.sh").is_file() else None


def _pip(wanted: str) -> str:
    # Naming an installed whale-jax makes pip fetch only what its metadata require; the package itself stays.
    return f'{_near(Path(sys.executable))} -m pip install "{wanted}"'


def _set_up(wheel: str = "whale-jax") -> str:
    """Returns the command that installs the parts that Whale cannot run without."""
    root = _checkout()
    return f"bash {_near(root / 'launch' / 'setup.sh')}" if root else _pip(wheel)


def _pip_install(part: str) -> str:
    """Returns the command that adds an optional part to this environment."""
    root = _checkout()
    if root is None:
        return _pip(f"whale-jax[{part}]")
    source = "." if root == Path.cwd() else root
    return f'{_near(Path(sys.executable))} -m pip install -c {_near(root / "requirements.txt")} -e "{source}[{part}]"'


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Check("python", "ok", version, required=True)
    how = f": WHALE_PYTHON=/path/to/python {_set_up()}" if _checkout() else ""
    advice = f"use Python 3.11, 3.12 or 3.13{how}"
    return Check("python", "missing", version, advice, required=True)


def _packages() -> list[Check]:
    """Checks every core package, then each optional part, against the bounds of setup.py."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("whale-jax") or ()]
    except metadata.PackageNotFoundError:
        return [Check("whale-jax", "missing", "not installed", _set_up("WHEEL"), required=True)]
    checks = [Check("whale-jax", "ok", metadata.version("whale-jax"), required=True)]
    core = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    for wanted in core + [Requirement("jaxlib")]:
        status, value = _installed(wanted)
        advice = "" if status == "ok" else _set_up()
        checks.append(Check(wanted.name, status, value, advice, required=True))
    for part, purpose in PARTS.items():
        wanted = [r for r in required if r not in core and r.marker.evaluate({"extra": part})]
        found = [(r.name, *_installed(r)) for r in wanted]
        status = max((status for _, status, _ in found), key=("ok", "warn", "missing").index)
        advice = "" if status == "ok" else f"for {purpose}: {_pip_install(part)}"
        value = ", ".join(f"{name} {version}" for name, _, version in found)
        checks.append(Check(f"[{part}]", status, value, advice))
    return checks


def _installed(wanted) -> tuple[str, str]:
    """Returns (status, version) of one requirement without importing it."""
    try:
        version = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return "missing", "missing"
    if wanted.specifier.contains(version, prereleases=True):
        return "ok", version
    return "warn", f"{version}, outside of {wanted.specifier}"


def _devices() -> list[Check]:
    """Checks which devices JAX uses, and whether it leaves an NVIDIA GPU idle."""
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-c", _DEVICES]
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
        done.check_returncode()
        devices = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        advice = "a GPU may hang: see nvidia-smi; JAX_PLATFORMS=cpu goes without it"
        return [Check("devices", "missing", "JAX did not start within 60 s", advice, required=True)]
    except (subprocess.CalledProcessError, ValueError, IndexError):
        value = "JAX does not start: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Check("devices", "missing", value, _set_up(), required=True)]
    value = "; ".join(
        f"{n} x {platform} {kind if kind != platform else ''}".strip()
        + (f" with {limit / GIB:.1f} GiB each" if limit else "")
        for (platform, kind, limit), n in Counter(map(tuple, devices)).items()
    )
    checks = [Check("devices", "ok", f"{value} ({os.cpu_count()} CPU cores)", required=True)]
    gpus = _nvidia_gpus()
    if gpus:
        used = any(platform in ("gpu", "cuda") for platform, _, _ in devices)
        advice = f"JAX does not use it: {_pip_install('cuda')}"
        status = "ok" if used else "warn"
        checks.append(Check("nvidia driver", status, f"{len(gpus)} x {gpus[0]}", "" if used else advice))
    return checks


def _nvidia_gpus() -> list[str]:
    """Returns the names of the GPUs that the NVIDIA driver lists."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"^GPU \d+: (.*?) \(", done.stdout, flags=re.MULTILINE)


def _gl() -> Check:
    from whale_jax.base.errors import WhaleError
    from whale_jax.data.metaworld.rendering import find_gl

    try:
        return Check("off-screen GL", "ok", find_gl(), required=True)
    except WhaleError as error:
        return Check("off-screen GL", "missing", "none", str(error), required=True)


def _memory() -> Check:
    from whale_jax.base.machine import free_memory

    free = free_memory()
    advice = f"the quick start takes up to {NEEDED_MEMORY / GIB:.0f} GiB" if free < NEEDED_MEMORY else ""
    return Check("free memory", "warn" if advice else "ok", f"{free / GIB:.1f} GiB", advice)


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    advice = "free some, or give a --workdir on another disk" if free < NEEDED_DISK else ""
    return Check("free disk", "warn" if advice else "ok", f"{free / GIB:.1f} GiB in {Path.cwd()}", advice)


def _wandb() -> Check:
    if util.find_spec("wandb") is None:
        return Check("wandb", "missing", "missing", "to log to Weights & Biases as well: pip install wandb")
    return Check("wandb", "ok", metadata.version("wandb"))
