"""The one training loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from whale_jax.data.batch import Batch, validate
from whale_jax.errors import WhaleError
from whale_jax.models.world_model import Params
from whale_jax.training import failure
from whale_jax.training.checkpoint import (
    CheckpointWriter,
    Meta,
    check_architecture,
    check_space,
    disk_errors,
    read_component,
    read_item,
    read_json,
    read_meta,
    steps_in,
)
from whale_jax.training.failure import step_key
from whale_jax.training.flops import stage_flops
from whale_jax.training.progress import History, Meter, TensorBoard, say, status_line
from whale_jax.training.sharding import put_batch, replicated, tree_shardings
from whale_jax.training.stages import Stage


@flax.struct.dataclass
class TrainState:
    """All that a step changes: step () int32, parameters, optimiser state, stage state, and whether a step failed."""

    step: jax.Array
    params: Any
    opt_state: Any
    extra: Any
    failed: jax.Array


@dataclasses.dataclass(frozen=True)
class Run:
    """What a stage's run is given.

    Attributes:
      directory: where the stage's checkpoints go; history, tensorboard and failures: the same for those.
      mesh, axis_rules: devices and how parameters spread over them.
      seed: of parameters and of every step.
      meta: what every checkpoint says of itself.
      train_batches: opens an iterator of batches with get_state and set_state.
      valid_batches: a fixed list of held-out batches; may be empty.
    """

    directory: Path
    history: Path
    tensorboard: Path | None
    failures: Path
    wandb: bool
    mesh: Mesh
    axis_rules: dict[str, str | None]
    seed: int
    meta: Meta
    train_batches: Callable[[], Iterator[Batch]]
    valid_batches: list[Batch]


def make_step(stage: Stage, tx: optax.GradientTransformation, seed: int):
    """The train step: (state, frozen, batch) -> (state, metrics). A step that is not finite changes nothing."""

    def step(state: TrainState, frozen: Params, batch: Batch):
        key = step_key(seed, stage.name, state.step)
        grad_fn = jax.value_and_grad(stage.loss, has_aux=True)
        (loss, (metrics, aux)), grads = grad_fn(state.params, frozen, batch, key, True)
        norm = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, extra = stage.after_update(params, state.extra, aux, jax.random.fold_in(key, 1), state.step)
        good = jnp.isfinite(loss) & jnp.isfinite(norm) & ~state.failed
        new = TrainState(state.step + 1, params, opt_state, extra, state.failed)
        state = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state.replace(failed=~good))
        return state, metrics | {"grad_norm": norm, "failed": state.failed}

    return step


def abstract_state(stage: Stage, tx: optax.GradientTransformation, mesh: Mesh, axis_rules, seed: int):
    """The function that creates a fresh state, and the state's shapes with their shardings."""

    def create():
        key = step_key(seed, stage.name, 2**31 - 1)
        params = stage.init(key)
        extra = stage.initial_extra(nn.unbox(params))
        return TrainState(jnp.int32(0), params, tx.init(params), extra, jnp.bool_(False))

    boxed = jax.eval_shape(create)
    shardings = tree_shardings(boxed, mesh, axis_rules)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), nn.unbox(boxed), shardings)
    return jax.jit(lambda: nn.unbox(create()), out_shardings=shardings), shapes


class Trainer:
    """Runs one stage from wherever its newest checkpoint stands to its end."""

    def __init__(self, stage: Stage, frozen: Params, run: Run):
        self.stage, self.run, self.settings = stage, run, stage.settings
        self._tx = stage.optimizer()
        self._create, self._shapes = abstract_state(stage, self._tx, run.mesh, run.axis_rules, run.seed)
        self._step = jax.jit(make_step(stage, self._tx, run.seed), donate_argnums=0)
        self._loss = jax.jit(lambda p, f, b: stage.loss(p, f, b, jax.random.key(0), False)[1][0])
        self._film = jax.jit(stage.film)
        self.frozen = jax.device_put(frozen, replicated(run.mesh))
        self._best: float | None = None
        self._best_params: Params | None = None
        self._bad_evals = 0
        self._warned = False

    def train(self) -> tuple[Params, dict[str, Any]]:
        """Trains to the end; returns the component's parameters and a summary (steps, seconds of this call).

        Raises:
          WhaleError: the loss was not finite; the disk is full; a checkpoint does not fit or cannot be read.
        """
        started = time.perf_counter()
        batches = self.run.train_batches()
        state, finished = self._restore(batches)
        step = int(state.step)
        if finished:
            return self._result(state), {"steps": step, "seconds": 0.0}
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_errors(self.run.directory))
            self._writer = CheckpointWriter(self.run.directory)
            stack.callback(self._writer.close)
            check_space(self.run.directory, (self._shapes, self.frozen))
            self._history = History(self.run.history, step)
            stack.callback(self._history.close)
            self._board = self._open_board()
            if self._board:
                stack.callback(self._board.close)
            state, step = self._loop(state, step, batches)
        return self._result(state), {"steps": step, "seconds": time.perf_counter() - started}

    def _loop(self, state: TrainState, step: int, batches: Iterator[Batch]) -> tuple[TrainState, int]:
        s, pending, previous = self.settings, None, None
        meter = self._meter(step)
        first, stop = step, False
        while step < s.steps and not stop:
            waiting = time.perf_counter()
            batch = next(batches)
            meter.waited(time.perf_counter() - waiting)
            if step == first:
                validate(batch)
            state, metrics = self._step(state, self.frozen, put_batch(batch, self.run.mesh))
            step += 1
            if pending is not None:
                self._check(pending, state, previous)
            if step == first + 1:
                jax.block_until_ready(metrics)
                meter.restart(step)
            pending, previous = (step, metrics), batch
            if step % s.log_every == 0 or step == s.steps:
                self._log(step, metrics, meter)
            if step % s.eval_every == 0 or step == s.steps:
                self._check(pending, state, previous)
                stop = self._evaluate(step, state)
                meter.restart(step)
            if step % s.save_every == 0 or step == s.steps or stop:
                self._check(pending, state, previous)
                self._save(state, step, batches, finished=stop or step == s.steps)
        return state, step

    def _meter(self, step: int) -> Meter:
        model = self.stage.networks.settings
        frames = self.settings.num_frames or model.num_frames
        flops = stage_flops(self.stage.name, model, frames, self.settings.batch_size, self.settings.members)
        return Meter(self.settings, self.settings.batch_size * frames, flops, step)

    def _open_board(self) -> TensorBoard | None:
        if self.run.tensorboard is None or jax.process_index():
            return None
        return TensorBoard(self.run.tensorboard, self.stage.name, self.run.wandb)

    def _restore(self, batches: Iterator[Batch]) -> tuple[TrainState, bool]:
        steps = steps_in(self.run.directory)
        if not steps:
            state = self._create()
            first = put_batch(validate(next(self.run.train_batches())), self.run.mesh)
            key = step_key(self.run.seed, self.stage.name, 2**31 - 2)
            params = jax.jit(self.stage.prepare)(state.params, first, key)
            if self.settings.start_from:
                params = read_component(self.settings.start_from, self.stage.name, self.stage.networks.settings)
            shardings = jax.tree.map(lambda x: x.sharding, self._shapes.params)
            return state.replace(params=jax.device_put(params, shardings)), False
        step = steps[-1]
        meta = read_meta(self.run.directory, step)
        check_architecture(meta, self.stage.networks.settings, self.run.directory)
        params = self._read_params(step, "params")
        rest = read_item(self.run.directory, step, "optimizer", self._shapes.replace(params={}))
        batches.set_state(read_json(self.run.directory, step, "data"))
        self._best, self._bad_evals = meta.best, meta.bad_evals
        if meta.best is not None:
            self._best_params = read_item(self.run.directory, step, "best", self._shapes.params)
        if not meta.finished:
            say(f"{self.stage.name}: resuming at step {step} of {self.settings.steps}")
        return rest.replace(params=params), meta.finished

    def _read_params(self, step: int, item: str) -> Params:
        keep = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(self.run.mesh)), self.frozen
        )
        target = keep | {self.stage.name: self._shapes.params}
        return read_item(self.run.directory, step, item, target)[self.stage.name]

    def _save(self, state: TrainState, step: int, batches: Iterator[Batch], finished: bool) -> None:
        items = {
            "params": self.frozen | {self.stage.name: state.params},
            "optimizer": state.replace(params={}),
            "example": dataclasses.asdict(self._example()),
        }
        if self._best_params is not None:
            items["best"] = self._best_params
        meta = dataclasses.replace(
            self.run.meta,
            stage=self.stage.name,
            finished=finished,
            best=self._best,
            bad_evals=self._bad_evals,
        )
        if finished and self._best_params is not None:
            items["params"] = self.frozen | {self.stage.name: self._best_params}
        self._writer.save(step, items, batches.get_state(), meta)
        if drawn := batches.report():
            say(drawn)
            self._history.write({"step": step, "data": drawn})

    def _example(self) -> Batch:
        if not hasattr(self, "_example_batch"):
            self._example_batch = jax.tree.map(lambda x: np.asarray(x[:1]), next(self.run.train_batches()))
        return self._example_batch

    def _log(self, step: int, metrics: dict[str, jax.Array], meter: Meter) -> None:
        values = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "failed"}
        speed = meter.read(step)
        say(status_line(self.stage.name, self.settings, step, values, speed))
        self._history.write({"step": step, **values, **speed})
        if self._board:
            self._board.scalars(step, values | {f"speed/{k}": v for k, v in speed.items()})
        warning = self.stage.warning(values)
        if warning and not self._warned and step >= self.settings.steps // 10:
            say(f"warning: {warning}")
            self._warned = True

    def _evaluate(self, step: int, state: TrainState) -> bool:
        if not self.run.valid_batches:
            return False
        batches = [put_batch(batch, self.run.mesh) for batch in self.run.valid_batches]
        all_metrics = jax.device_get([self._loss(state.params, self.frozen, batch) for batch in batches])
        means = {f"val/{k}": float(np.mean([m[k] for m in all_metrics])) for k in all_metrics[0]}
        say(f"{self.stage.name:<10}held out at step {step}: " + "  ".join(f"{k[4:]} {v:.4g}" for k, v in means.items()))
        self._history.write({"step": step, **means})
        if self._board:
            self._board.scalars(step, means)
            if (film := self._film(state.params, self.frozen, batches[0])) is not None:
                self._board.film(step, "film", np.asarray(film))
        return self._select(means[f"val/{self.stage.selects_on}"], state)

    def _select(self, value: float, state: TrainState) -> bool:
        if not self.settings.patience:
            return False
        if self._best is None or value < self._best:
            self._best, self._bad_evals = value, 0
            self._best_params = jax.tree.map(jnp.copy, state.params)
        else:
            self._bad_evals += 1
        if self._bad_evals >= self.settings.patience:
            say(f"{self.stage.name}: no better for {self._bad_evals} evaluations; keeping the best ({self._best:.4g})")
            return True
        return False

    def _result(self, state: TrainState) -> Params:
        params = state.params if self._best_params is None else self._best_params
        return self.frozen | {self.stage.name: params}

    def _check(self, pending: tuple[int, dict], state: TrainState, batch: Batch) -> None:
        step, metrics = pending
        if not bool(metrics["failed"]):
            return
        failed_step = int(state.step)
        directory = self.run.failures / self.stage.name
        key = step_key(self.run.seed, self.stage.name, failed_step)
        report = failure.explain(self.stage, state.params, self.frozen, put_batch(batch, self.run.mesh), key)
        items = {"params": self.frozen | {self.stage.name: state.params}}
        meta = dataclasses.replace(self.run.meta, stage=self.stage.name)
        failure.save(directory, failed_step, self.run.seed, items, batch, meta, report)
        bad = report["not_finite"]["gradients"]
        raise WhaleError(
            f"Stage {self.stage.name}: step {failed_step} was not finite (loss {report['loss']}, gradient norm "
            f"{float(metrics['grad_norm']):.4g}, {len(bad)} parameter arrays with non-finite gradients"
            f"{', first ' + bad[0] if bad else ''}). Nothing was updated; the step's parameters, batch and norms "
            f"are in {directory / str(failed_step)}. Replay it with: whale replay {directory / str(failed_step)}"
        )
