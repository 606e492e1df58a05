"""One stage's training step on synthetic data: compiled from shapes, checked against the memory, timed by parts."""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from whale_jax.data.contract.batch import Batch, example
from whale_jax.jobs.configuration import make_stage
from whale_jax.nn.placement import Placement, placed
from whale_jax.tools.bench.timing import check_fits, compile_cold, median_seconds, timed
from whale_jax.training import sharding
from whale_jax.training.sharding import Params
from whale_jax.training.stage import Stage
from whale_jax.training.step import TrainState, abstract_arguments, gradients, in_parts, make_step


@dataclasses.dataclass(frozen=True)
class StepCase:
    """A stage's training step on the mesh of this machine, before anything of it is allocated.

    Attributes:
      stage, placement: the stage and its devices.
      step: the jitted train step, which consumes its state.
      state, frozen, batch: shapes with shardings; the batch is the global one.
    """

    stage: Stage
    placement: Placement
    step: Callable
    state: TrainState
    frozen: Params
    batch: Batch

    @property
    def frames(self) -> int:
        """Frames of the global batch."""
        return self.batch.frames.shape[0] * self.batch.frames.shape[1]


def step_case(name: str, config: ConfigDict) -> StepCase:
    """Returns the training step of the stage called `name`.

    Raises:
      WhaleError: the batch does not divide over the devices.
    """
    stage, placement = make_stage(config, name), sharding.make_placement(config.mesh)
    stage.check_rows(placement.mesh.shape["data"])
    return StepCase(stage, placement, make_step(stage, 0, placement), *abstract_arguments(stage, placement))


def bench_step(case: StepCase, what: str, resident: int, repeats: int) -> dict[str, Any]:
    """Times the step and its parts, each until its result is ready.

    Args:
      case: see `step_case`.
      what: name of the step in errors.
      resident: bytes of state, frozen parameters and batch on each device.
      repeats: number of timed rounds after one warm-up.

    Returns:
      "compile_seconds" of the step, from tracing to the program, without the persistent cache; "argument_bytes" and
      "temp_bytes", the arguments and the working memory of that program on each device; and medians in milliseconds:
        "step_ms": the whole step.
        "forward_ms": the loss alone.
        "backward_ms": loss and gradients, minus the loss.
        "update_ms": the step, minus loss and gradients.
        "transfer_ms": moving a batch of numpy arrays to the devices, which is not part of the step.

    Raises:
      WhaleError: the program does not fit the memory; nothing is allocated then.
    """
    shapes = (case.state, case.frozen, case.batch)
    step, compile_seconds = compile_cold(case.step, *shapes)
    memory = step.memory_analysis()
    check_fits(what, resident + memory.temp_size_in_bytes)
    parts = {name: program.lower(case.state.params, *shapes[1:]).compile() for name, program in _parts(case).items()}
    milliseconds = {name: 1000 * seconds for name, seconds in _measure(case, step, parts, repeats).items()}
    return {
        "compile_seconds": compile_seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "step_ms": milliseconds["step"],
        "forward_ms": milliseconds["forward"],
        "backward_ms": milliseconds["gradients"] - milliseconds["forward"],
        "update_ms": milliseconds["step"] - milliseconds["gradients"],
        "transfer_ms": milliseconds["transfer"],
    }


def _parts(case: StepCase) -> dict[str, Callable]:
    """Returns jitted functions of the loss alone, and of loss and gradients, over as many batch parts as the step."""
    parts = case.stage.settings.accumulate

    def loss(params: Params, frozen: Params, batch: Batch) -> jax.Array:
        with placed(case.placement):
            rows = in_parts(batch, parts)
            # A loop over the parts, as in the step: side by side they would need more memory than the step.
            return jax.lax.map(lambda b: case.stage.loss(params, frozen, b, jax.random.key(0), True)[0], rows).mean()

    def grads(params: Params, frozen: Params, batch: Batch):
        with placed(case.placement):
            value, _, _, slopes = gradients(case.stage, params, frozen, batch, jax.random.key(0))
        return value, slopes  # without metrics and aux, so that XLA drops work that only they need

    return {"forward": jax.jit(loss), "gradients": jax.jit(grads)}


def _measure(case: StepCase, step: Callable, parts: dict[str, Callable], repeats: int) -> dict[str, float]:
    state, frozen, host = synthetic_state(case.state), synthetic_params(case.frozen), synthetic_batch(case.batch)
    mesh = case.placement.mesh
    batch = sharding.put_batch(host, mesh)

    def whole_step():
        nonlocal state
        state, metrics = step(state, frozen, batch)
        return metrics

    runs = {name: lambda part=part: part(state.params, frozen, batch) for name, part in parts.items()}
    # A copy each time, for JAX may reuse an array that is already on the device.
    transfers = [timed(sharding.put_batch, jax.tree.map(np.copy, host), mesh)[0] for _ in range(repeats + 1)]
    seconds = median_seconds(runs | {"step": whole_step}, repeats)
    return seconds | {"transfer": statistics.median(transfers[1:])}


def synthetic_batch(shapes: Batch) -> Batch:
    """Returns this process's rows of a global batch of noise, since zeros would make an accelerator look faster."""
    rows, frames, height, width, _ = shapes.frames.shape
    batch = example(rows // jax.process_count(), frames, height, width, shapes.actions.shape[-1])
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.uniform, -1.0, 1.0)
    return dataclasses.replace(
        batch,
        frames=rng.integers(0, 256, batch.frames.shape, np.uint8),
        actions=np.float32(draw(batch.actions.shape)),
        rewards=np.float32(draw(batch.rewards.shape)),
    )


def synthetic_state(shapes: TrainState) -> TrainState:
    """Returns a state of these shapes before its first step, with synthetic parameters."""
    zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), shapes.replace(params={}))
    return zeros.replace(params=synthetic_params(shapes.params))


def synthetic_params(shapes: Params) -> Params:
    """Returns small random parameters of these shapes; the real initialisation would take seconds to compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(0.02 * rng.standard_normal(x.shape, np.float32).astype(x.dtype), x.sharding), shapes
    )
