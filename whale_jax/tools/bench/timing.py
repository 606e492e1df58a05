"""The measuring tools of `whale bench`: clocks, a cold compiler, the peak of a device and its free memory."""

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from whale_jax.base.errors import WhaleError
from whale_jax.base.machine import free_memory
from whale_jax.tools.chips import chip_of

LONG_RUN = 20.0  # seconds; a run this long needs no warm-up
LEAST_TIMED = 0.5  # seconds; runs of milliseconds are repeated for so long, or one interruption would decide
MARGIN = 1.1  # factor on a program's bytes, for the memory that the runtime itself takes


@dataclasses.dataclass(frozen=True)
class Peak:
    """FLOP/s of matrix products on one device; `source` is "data sheet" or "measured"."""

    flops: float
    source: str


def peak_of_one(dtype: Any) -> Peak:
    """Returns the data sheet's dense bfloat16 rate of this kind of device, else a measured rate of `dtype` products."""
    devices = jax.devices()
    if chip := chip_of(devices[0].device_kind):
        return Peak(chip.tflops * 1e12, "data sheet")
    size = 2048 if devices[0].platform == "cpu" else 8192
    return Peak(matrix_rate(dtype, size, repeats=3, devices=devices), "measured")


def matrix_rate(
    dtype: Any = jnp.float32, size: int = 2048, repeats: int = 10, devices: Sequence[jax.Device] = ()
) -> float:
    """Measures the FLOP/s of a square matrix product on one device, the best of `repeats`.

    Args:
      dtype: dtype of the factors.
      size: rows and columns.
      repeats: number of timed products.
      devices: all of them compute such a product at the same time, since simulated devices share the machine's cores;
        () takes only the first device.
    """
    devices = list(devices) or jax.devices()[:1]
    mesh = Mesh(np.asarray(devices), ("rows",))
    shardings = [NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ())]

    def factors():
        shapes = ((len(devices) * size, size), (size, size))
        return [jax.random.normal(jax.random.key(0), shape, dtype) for shape in shapes]

    product = jax.jit(lambda a, b: a @ b)
    return 2 * size**3 / best_seconds(product, *jax.jit(factors, out_shardings=shardings)(), repeats=repeats)


def timed(run: Callable, *arguments) -> tuple[float, Any]:
    """Returns the seconds until the result of a call is ready, and the result."""
    started = time.perf_counter()
    result = jax.block_until_ready(run(*arguments))
    return time.perf_counter() - started, result


def fastest(*runs: Callable[[], Any], repeats: int = 3) -> list[float]:
    """Returns the seconds of the fastest round of each of `runs`, after a warm-up; long runs are their own warm-up.

    The runs take turns, so that a machine that slows down affects all of them. Short ones have more rounds than
    `repeats`.
    """
    rounds = [[timed(run)[0] for run in runs]]
    if sum(rounds[0]) <= LONG_RUN:
        rounds.clear()
        started = time.perf_counter()
        while len(rounds) < repeats or time.perf_counter() - started < LEAST_TIMED:
            rounds.append([timed(run)[0] for run in runs])
    return [min(seconds) for seconds in zip(*rounds, strict=True)]


def best_seconds(run: Callable, *arguments, repeats: int = 3) -> float:
    """Returns the seconds of the fastest run, see `fastest`."""
    return fastest(functools.partial(run, *arguments), repeats=repeats)[0]


def seconds_ratio(run: Callable[[], Any], reference: Callable[[], Any]) -> float:
    """Returns the seconds of `run` over those of `reference`, see `fastest`."""
    seconds, of_reference = fastest(run, reference)
    return seconds / of_reference


def median_seconds(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Returns the median seconds of each of `runs` over `repeats` rounds after one warm-up.

    The runs take turns, so that a machine that slows down affects all of them.
    """
    rounds = [{name: timed(run)[0] for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(seconds[name] for seconds in rounds[1:]) for name in runs}


def check_repeats(steps: int) -> None:
    """Raises WhaleError if there would be nothing to time."""
    if steps < 1:
        raise WhaleError(f"--steps={steps} would time nothing; give 1 or more.")


def compile_cold(program: Callable, *shapes) -> tuple[jax.stages.Compiled, float]:
    """Compiles a jitted function for `shapes` without the persistent cache; also returns the seconds this takes."""
    with _no_cache():
        started = time.perf_counter()
        compiled = program.lower(*shapes).compile()
        return compiled, time.perf_counter() - started


@contextlib.contextmanager
def _no_cache():
    """Turns the persistent cache off; JAX checks this setting only once per process and after each reset."""
    enabled = jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_enable_compilation_cache", False)
        compilation_cache.reset_cache()
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def free_bytes() -> int:
    """Returns the bytes free on each device; devices on a CPU share the machine's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return free_memory() // jax.local_device_count()


def check_fits(what: str, needed: int, free: int | None = None) -> None:
    """Raises WhaleError if `needed` bytes and a margin exceed the free memory of a device.

    Args:
      what: subject of the error's sentence.
      needed: bytes on one device.
      free: free bytes on one device; None looks them up.
    """
    free = free_bytes() if free is None else free
    if MARGIN * needed > free:
        raise WhaleError(
            f"{what} needs {MARGIN * needed / 2**30:.1f} GiB on each device and {free / 2**30:.1f} GiB are free; give "
            "a smaller --batch=N, more devices or a machine with more memory."
        )
