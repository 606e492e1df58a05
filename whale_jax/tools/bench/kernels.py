"""`whale bench kernels`: times the attention kernels at the shapes of a config, to choose them by measurement.

The rule: on each axis, space and time, the config takes the fastest of the kernels that every transformer can run
there. The time of a kernel is its milliseconds, forward and backward, summed over all transformers and their blocks.
"auto" stays if the kernel that it resolves to is within 5 % of the fastest.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import draw, grid
from whale_jax.jobs.configuration import check_buildable, make_stage, make_world
from whale_jax.nn.attention import KERNELS, attention, resolve_kernel
from whale_jax.nn.precision import resolve_dtype
from whale_jax.tools.bench.stages import head_line, with_batch_size
from whale_jax.tools.bench.timing import check_fits, check_repeats, median_seconds
from whale_jax.training import sharding

AXES = ("space", "time")
TOLERANCE = 1.05


@dataclasses.dataclass(frozen=True)
class AttentionCase:
    """Attention of one transformer along one axis, as its stage trains it on one device.

    Attributes:
      transformer: its name in the config; blocks: number of its blocks.
      axis: "space" or "time".
      shape: (B, S, H, D) of queries, keys and values.
      causal, padded: whether later positions, and those past a row's length, are hidden.
      dtype: dtype of queries, keys and values.
    """

    transformer: str
    blocks: int
    axis: str
    shape: tuple[int, int, int, int]
    causal: bool
    padded: bool
    dtype: str

    @property
    def candidates(self) -> tuple[str, ...]:
        """The kernels that backend, type and case allow."""
        barred = set()
        if jax.default_backend() != "gpu" or self.dtype != "bfloat16":
            barred.add("cudnn")
        if self.causal or self.padded:
            barred.add("bounded")
        return tuple(kernel for kernel in KERNELS if kernel not in barred)


def attention_cases(config: ConfigDict) -> list[AttentionCase]:
    """Returns both axes of every transformer, at the batch of the stage that trains it, divided over the devices.

    Raises:
      WhaleError: a batch does not divide over the devices.
    """
    placement = sharding.make_placement(config.mesh)
    split = placement.mesh.shape["model"] if placement.rules.get("heads") == "model" else 1
    cases = []
    transformers = make_world(config).model.transformers()
    if not transformers:
        raise WhaleError(
            f"The kernels are those of transformers, and a {config.model.name} has none; bench its stages."
        )
    for each in transformers:
        settings, frames = each.settings, make_stage(config, each.component).num_frames - each.fewer
        rows = sharding.rows_per_device(config.stages[each.component].batch_size, placement.mesh)
        rows //= config.stages[each.component].accumulate
        here = settings.num_heads // (split if settings.num_heads % split == 0 else 1)
        heads = (here, settings.width // settings.num_heads)
        for axis, lead, length in (("space", frames, each.tokens), ("time", each.tokens, frames)):
            in_time = axis == "time"
            cases.append(
                AttentionCase(
                    transformer=each.name,
                    blocks=settings.num_blocks,
                    axis=axis,
                    shape=(rows * lead, length, *heads),
                    causal=in_time and settings.causal,
                    padded=in_time and each.padded,
                    dtype=resolve_dtype(settings.dtype).name,
                )
            )
    return cases


def bench_kernels(config: ConfigDict, steps: int = 10, batch_size: int = 0) -> dict[str, Any]:
    """Times every allowed kernel in every attention of a config, forward and backward, on one device.

    Args:
      config: see `whale_jax.jobs.configuration.default_config`.
      steps: number of timed repetitions after one warm-up; the medians are reported.
      batch_size: batch of every stage, over all devices; 0 keeps each stage's own.

    Returns:
      "config", "devices", "compute_type", and:
        "rows": one per `AttentionCase`, with its fields, the kernel that "auto" resolves to, "milliseconds" by kernel,
          "failed" (the reason, by kernel), and "fastest" or None.
        "chosen": the kernel of each axis by the rule above.
        "warnings": sentences that say where "auto" is more than 5 % slower than the fastest, and what to set.

    Raises:
      WhaleError: nothing is to be timed, or a batch does not divide over the devices.
    """
    check_repeats(steps)
    config = with_batch_size(config, batch_size)
    check_buildable(config)
    measured, rows = {}, []
    for case in attention_cases(config):
        # Several transformers may attend alike.
        alike = dataclasses.replace(case, transformer="", blocks=0)
        if alike not in measured:
            measured[alike] = _measure(case, steps)
        rows.append(_row(case, *measured[alike]))
    chosen = {axis: choose([row for row in rows if row["axis"] == axis]) for axis in AXES}
    return {
        "config": config.name,
        "devices": [device.device_kind for device in jax.devices()],
        "compute_type": rows[0]["dtype"],
        "rows": rows,
        "chosen": chosen,
        "warnings": [*map(_warning, filter(_auto_is_slow, rows)), *_advice(chosen)],
    }


def _row(case: AttentionCase, milliseconds: dict[str, float], failed: dict[str, str]) -> dict[str, Any]:
    return dataclasses.asdict(case) | {
        "auto": resolve_kernel("auto", case.axis),
        "milliseconds": milliseconds,
        "failed": failed,
        "fastest": min(milliseconds, key=milliseconds.get, default=None),
    }


def _measure(case: AttentionCase, steps: int) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the milliseconds of the kernels that run, and the reasons why the others do not."""
    runs, failed = {}, {}
    for kernel in case.candidates:
        try:
            runs[kernel] = _program(case, kernel)
        except (WhaleError, ValueError, RuntimeError, NotImplementedError) as error:
            failed[kernel] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not runs:
        return {}, failed
    arrays = jax.jit(lambda: _inputs(case))()
    seconds = median_seconds({kernel: lambda run=run: run(*arrays) for kernel, run in runs.items()}, steps)
    return {kernel: 1000 * value for kernel, value in seconds.items()}, failed


def _program(case: AttentionCase, kernel: str) -> Callable:
    """Compiles the gradients of the kernel's output for one device; raises WhaleError if they do not fit it."""

    def loss(qkv, weights, lengths):
        out = attention(*qkv, causal=case.causal, kernel=kernel, lengths=lengths)
        # Weighted by noise: the gradient of a plain sum is all ones, which a compiler may exploit.
        return (out * weights).sum(dtype=jnp.float32)

    shapes = jax.eval_shape(lambda: _inputs(case))
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*shapes).compile()
    memory = compiled.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    check_fits(f"Kernel {kernel} of {case.transformer} along {case.axis}", needed)
    return compiled


def _inputs(case: AttentionCase) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array | None]:
    """Returns queries, keys and values, weights, and lengths or None; queries and keys have unit mean square."""
    q, k, v, weights = jax.random.normal(jax.random.key(0), (4, *case.shape), jnp.float32)
    q, k = (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True)) for x in (q, k))
    lengths = jnp.full(case.shape[0], case.shape[1], jnp.int32) if case.padded else None
    return tuple(x.astype(case.dtype) for x in (q, k, v)), weights.astype(case.dtype), lengths


def choose(rows: list[dict[str, Any]]) -> str:
    """Returns the kernel of an axis by the rule above, from rows of `bench_kernels`; "auto" if none runs in all."""

    def total(kernel: str) -> float:
        return sum(row["blocks"] * row["milliseconds"].get(kernel, math.inf) for row in rows)

    fastest = min(KERNELS, key=total)
    return "auto" if total(rows[0]["auto"]) <= TOLERANCE * total(fastest) else fastest


def _auto_is_slow(row: dict[str, Any]) -> bool:
    milliseconds = row["milliseconds"]
    return bool(milliseconds) and milliseconds.get(row["auto"], math.inf) > TOLERANCE * min(milliseconds.values())


def _warning(row: dict[str, Any]) -> str:
    taken = row["milliseconds"].get(row["auto"])
    than = f"takes {taken:.3g} ms" if taken is not None else "does not run"
    best = f"{row['fastest']} takes {row['milliseconds'][row['fastest']]:.3g} ms"
    return f"{row['transformer']} along {row['axis']}: auto is {row['auto']}, which {than}; {best}."


def _advice(chosen: dict[str, str]) -> list[str]:
    return [
        f"Over the whole config {kernel} is faster along {axis}: set --config.model.execution.{axis}_kernel={kernel}."
        for axis, kernel in chosen.items()
        if kernel != "auto"
    ]


def to_text(report: dict[str, Any]) -> str:
    """Formats a table that marks the fastest kernel of each row, and the warnings."""
    texts = ("transformer", "axis", "B x S x H x D", "mask", "auto")
    rows, notes = [], []
    for row in report["rows"]:
        mask = "causal" if row["causal"] else "lengths" if row["padded"] else ""
        shape = " x ".join(map(str, row["shape"]))
        cells = [_cell(row, kernel) for kernel in KERNELS]
        rows.append((row["transformer"], row["axis"], shape, mask, row["auto"], *cells))
        notes += [f"failed: {row['transformer']} {row['axis']}: {k}: {why}" for k, why in row["failed"].items()]
    notes += [f"warning: {warning}" for warning in report["warnings"]]
    title = "attention, forward and backward, ms on one device; * the fastest"
    shown = grid(title, (*texts, *KERNELS), rows, left=texts)
    return "\n".join([head_line(report), draw(shown), *notes])


def _cell(row: dict[str, Any], kernel: str) -> str:
    if kernel in row["failed"]:
        return "failed"
    if kernel not in row["milliseconds"]:
        return "-"
    return f"{row['milliseconds'][kernel]:.3f} {'*' if kernel == row['fastest'] else ' '}"
