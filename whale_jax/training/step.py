"""The train step and the state that it changes."""

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from whale_jax.data.contract.batch import Batch, example
from whale_jax.nn.placement import Placement, constrain, placed
from whale_jax.training.optimizer import trained
from whale_jax.training.sharding import Match, Params, matches, replicated, tree_shardings
from whale_jax.training.stage import Stage


@flax.struct.dataclass
class SavedState:
    """The part of a `TrainState` that a checkpoint's item "optimizer" holds; its parameters are items of their own."""

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    extra: Any
    failed: jax.Array


@flax.struct.dataclass
class TrainState:
    """The state that a step changes.

    Attributes:
      step: () int32, steps done.
      params: the component's parameters.
      opt_state: state of the optimiser; extra: that of the stage.
      failed: () bool, whether a step was not finite.
      averaged: moving average of the parameters; None unless the stage's settings ask for it.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    extra: Any
    failed: jax.Array
    averaged: Any = None

    @property
    def saved(self) -> SavedState:
        """The state without its parameters."""
        return SavedState(self.step, {}, self.opt_state, self.extra, self.failed)

    @property
    def best_guess(self) -> Any:
        """The averaged parameters if there are any, else the trained ones."""
        return self.params if self.averaged is None else self.averaged


def step_key(seed: int, stage: Stage, step: jax.Array | int) -> jax.Array:
    """Returns the key of one training step, a pure function of seed, stage and step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stage.seed_index), step)


def make_step(stage: Stage, seed: int, placement: Placement):
    """Returns the compiled train step (state, frozen, batch) -> (state, metrics), which reuses the state's buffers.

    A step that is not finite changes nothing. Frozen parts stay the same, bit for bit. With `accumulate` A, the batch
    is split into A parts that run one after another, and their gradients and metrics are averaged. `after_update`
    sees all parts on a first axis.
    """
    tx, shapes = stage.optimizer(), abstract_state(stage, seed, placement)[1]
    shardings = jax.tree.map(lambda x: x.sharding, shapes)

    def step(state: TrainState, frozen: Params, batch: Batch):
        key = step_key(seed, stage, state.step)
        with placed(placement):
            loss, metrics, aux, grads = gradients(stage, state.params, frozen, batch, key)
            moving = trained(stage.settings, state.params)
            if placement.mesh.size > 1:
                grads = jax.lax.with_sharding_constraint(grads, trained(stage.settings, shardings.params))
            norm = optax.tree.norm(grads)
            updates, opt_state = tx.update(grads, state.opt_state, moving)
            params = state.params | optax.apply_updates(moving, updates)
            last_key = jax.random.fold_in(key, stage.settings.accumulate)  # the parts fold in smaller numbers
            params, extra = stage.after_update(params, state.extra, aux, last_key, state.step)
        chex.assert_trees_all_equal_shapes_and_dtypes(params, state.params)
        # A `where` over all leaves instead of a branch: nothing waits for the flag, and donated buffers are reused.
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & ~state.failed
        averaged = _average(stage.settings.ema, state.averaged, params)
        new = TrainState(state.step + 1, params, opt_state, extra, state.failed, averaged)
        state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state.replace(failed=~good))
        return state, metrics | {"grad_norm": norm, "failed": state.failed}

    # The old state is donated: the new one takes its memory, so only one has to fit.
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(placement.mesh)))


def _average(ema: float, averaged: Any, params: Any) -> Any:
    """Moves the averaged parameters towards the trained ones."""
    if averaged is None:
        return None
    return jax.tree.map(lambda old, new: ema * old + (1.0 - ema) * new, averaged, params)


def gradients(stage: Stage, params: Params, frozen: Params, batch: Batch, key: jax.Array):
    """Returns loss, metrics, aux with a first axis of parts, and gradients of the component's trained parts.

    The batch is split into as many parts as the settings say.
    """

    def loss_of(moving, rows, key):
        return stage.loss(params | moving, frozen, rows, key, True)

    grad_fn = functools.partial(jax.value_and_grad(loss_of, has_aux=True), trained(stage.settings, params))
    parts = stage.settings.accumulate
    if parts == 1:
        (loss, (metrics, aux)), grads = grad_fn(batch, key)
        return loss, metrics, jax.tree.map(lambda x: x[None], aux), grads

    def run(rows, key):
        (loss, (metrics, aux)), grads = grad_fn(rows, key)
        return (loss, metrics, grads), aux

    def add(total, part):
        number, rows = part
        new, aux = run(rows, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, new), aux

    rows = in_parts(batch, parts)
    # Only shapes are traced, so that the sums start from zeros of the right types.
    shapes, _ = jax.eval_shape(run, jax.tree.map(lambda x: x[0], rows), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, aux = jax.lax.scan(add, zeros, (jnp.arange(parts), rows))
    loss, metrics, grads = jax.tree.map(lambda x: x / parts, total)
    return loss, metrics, aux, grads


def in_parts(batch: Batch, parts: int) -> Batch:
    """Splits a batch along a first axis of parts. Each part has rows of every device, so that no row moves."""

    def split(x):
        # Part i takes rows i, i + parts, …, so it has some of every device, whose rows are contiguous.
        x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
        return constrain(x, None, "batch", *[None] * (x.ndim - 2))

    return jax.tree.map(split, batch)


def make_loss(stage: Stage, placement: Placement):
    """Returns the compiled function of held-out metrics: (params, frozen, batch) -> metrics."""

    def loss(params: Params, frozen: Params, batch: Batch):
        with placed(placement):
            return stage.loss(params, frozen, batch, jax.random.key(0), False)[1][0]

    return jax.jit(loss, out_shardings=replicated(placement.mesh))


def abstract_state(stage: Stage, seed: int, placement: Placement):
    """Returns the function that creates a fresh state in its shards, and the state's shapes with shardings."""

    def create():
        # The number of a step that no run reaches.
        key = step_key(seed, stage, 2**31 - 1)
        params = stage.init(key)
        extra = stage.initial_extra(nn.unbox(params))
        opt_state = stage.optimizer().init(trained(stage.settings, params))
        # Typed zeros: a plain 0 has a weak type, which the first step would change, and the step would compile again.
        averaged = params if stage.settings.ema else None
        return TrainState(jnp.int32(0), params, opt_state, extra, jnp.bool_(False), averaged)

    shapes = _shapes(jax.eval_shape(create), placement)
    shardings = jax.tree.map(lambda x: x.sharding, shapes)
    return jax.jit(lambda: nn.unbox(create()), out_shardings=shardings), shapes


def abstract_frozen(world: Any, names: tuple[str, ...], placement: Placement) -> Params:
    """Returns the shapes of these components' parameters, with the shardings in which a later stage holds them."""
    return {name: _shapes(world.shapes(name), placement) for name in names}


def abstract_batch(stage: Stage, placement: Placement) -> Batch:
    """Returns the shapes of one global batch of a stage, sharded along `data`."""
    model, rows = stage.world.settings, stage.batch_rows
    sharding = NamedSharding(placement.mesh, PartitionSpec("data"))
    one = example(1, stage.num_frames, *model.frame_size, model.action_dim)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding), one)


def abstract_arguments(stage: Stage, placement: Placement) -> tuple[TrainState, Params, Batch]:
    """Returns the arguments of a stage's step as shapes with shardings: state, frozen parameters, batch."""
    frozen = abstract_frozen(stage.world, stage.world.earlier(stage.name), placement)
    return abstract_state(stage, 0, placement)[1], frozen, abstract_batch(stage, placement)


def step_flops(stage: Stage, placement: Placement, recomputed: bool = False) -> float:
    """Returns the FLOPs of one step of a stage over all devices, see `Stage.flops`."""
    rows, most = stage.settings.batch_size, 1024 * stage.rows
    # Indices of a much larger batch overflow while the program is traced; every row takes the same operations.
    counted = dataclasses.replace(stage.settings, batch_size=min(rows, most))
    stage = dataclasses.replace(stage, settings=counted)
    state, frozen, batch = abstract_arguments(stage, placement)
    return stage.flops(state.params, frozen, batch, recomputed) * rows / counted.batch_size


def rule_matches(stage: Stage, placement: Placement) -> list[Match]:
    """Returns what each sharding rule matches among the parameters that a stage trains."""
    return matches(jax.eval_shape(stage.init, jax.random.key(0)), placement)


def _shapes(boxed: Any, placement: Placement) -> Any:
    shardings = tree_shardings(boxed, placement)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)
