"""The training loop, which all stages share."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say
from whale_jax.base.workdir import Workdir
from whale_jax.data.contract.batch import Batch
from whale_jax.nn.placement import Placement
from whale_jax.training import failure, hosts, interrupt
from whale_jax.training.adopt import adopt
from whale_jax.training.boards import open_boards
from whale_jax.training.checkpoint import (
    CheckpointWriter,
    Meta,
    check_shapes,
    check_space,
    disk_errors,
    fall_back,
    read_item,
    read_json,
    read_meta,
    set_aside,
    steps_in,
)
from whale_jax.training.feed import Fed, Feed
from whale_jax.training.history import History
from whale_jax.training.profile import Profiler
from whale_jax.training.progress import Meter, status_line
from whale_jax.training.sharding import Params, describe, put_batch, replicated
from whale_jax.training.stage import Stage
from whale_jax.training.step import (
    TrainState,
    abstract_frozen,
    abstract_state,
    make_loss,
    make_step,
    rule_matches,
    step_flops,
    step_key,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The inputs of a stage's run.

    Attributes:
      workdir: work directory for checkpoints, history, failed steps and profiles.
      tensorboard: whether TensorBoard files are written there too.
      wandb: whether the same goes to Weights & Biases.
      placement: devices, and how parameters spread over them.
      seed: seed of the parameters and of every step.
      meta: description that every checkpoint holds.
      train_batches: opens an iterator of batches with get_state, set_state and report.
      valid_batches: fixed list of held-out batches, which may be empty.
      check_saved: raises WhaleError if a checkpoint's networks are not those that are trained.
      read_start: reads the component's parameters of the checkpoint `StageSettings.start_from`.
      stall_seconds: seconds without a batch before the run says what it waits for.
      profile: (first, last) step of a profiler trace, or None.
      measure: computes figures from all components' parameters every `measure_every` steps, or None.
      measure_every: steps between two calls of `measure`.
    """

    workdir: Workdir
    tensorboard: bool
    wandb: bool
    placement: Placement
    seed: int
    meta: Meta
    train_batches: Callable[[], Iterator[Batch]]
    valid_batches: list[Batch]
    check_saved: Callable[[Meta, Path], None] = lambda meta, where: None
    read_start: Callable[[], Params] | None = None
    stall_seconds: float = 60.0
    profile: tuple[int, int] | None = None
    measure: Callable[[Params], dict[str, float]] | None = None
    measure_every: int = 0


class Trainer:
    """The run of one stage, from its newest checkpoint to its end."""

    def __init__(self, stage: Stage, frozen: Params, run: Run):
        self.stage, self.run, self.settings = stage, run, stage.settings
        self._directory = run.workdir.checkpoints(stage.name)
        self._mesh = run.placement.mesh
        self._create, self._shapes = abstract_state(stage, run.seed, run.placement)
        self._step = make_step(stage, run.seed, run.placement)
        self._loss = make_loss(stage, run.placement)
        self._copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
        self._film = jax.jit(stage.film, out_shardings=replicated(self._mesh))
        self._frozen_shapes = abstract_frozen(stage.world, tuple(frozen), run.placement)
        self.frozen = jax.device_put(frozen, jax.tree.map(lambda x: x.sharding, self._frozen_shapes))
        self._best: float | None = None
        self._best_params: Params | None = None
        self._bad_evals = 0
        self._warned = False

    def train(self) -> tuple[Params, dict[str, Any]]:
        """Trains to the end and returns the parameters and a summary (steps, and seconds of this call).

        The parameters are those of the component and of the frozen ones, by component.

        Raises:
          WhaleError: a step was not finite, the disk is full, or a checkpoint does not fit or cannot be read.
          Interrupted: the run was asked to stop, and its step is saved.
        """
        started = time.perf_counter()
        batches = self.run.train_batches()
        state, finished = self._restore(batches)
        step = int(state.step)
        if finished:
            batches.close()
            return self._result(state), {"steps": step, "seconds": 0.0}
        if found := describe(rule_matches(self.stage, self.run.placement)):
            say(f"{self.stage.name}: {found}")
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_errors(self._directory))
            self._writer = CheckpointWriter(self._directory)
            stack.callback(self._writer.close)
            check_space(self._directory, (self._shapes, self.frozen))
            self._history = History(self.run.workdir.history(self.stage.name), step, writes=hosts.primary())
            stack.callback(self._history.close)
            asked = (self.run.tensorboard, self.run.wandb) if hosts.primary() else (False, False)
            boards = open_boards(self.run.workdir, self.stage.name, self.run.meta.config, *asked)
            self._boards = stack.enter_context(boards)
            self._example_batch = self._first_row()
            self._copy(state)  # compiles the copy here, so that no save waits for it
            profiler = Profiler(self.run.workdir.profile(self.stage.name), self.run.profile)
            stack.callback(profiler.close)
            batches.allow_growth(2 * sum(x.nbytes for x in jax.tree.leaves((state, self.frozen))))
            feed = Feed(batches, self._mesh, self.run.stall_seconds)
            stack.callback(feed.close)
            stack.enter_context(interrupt.deferred())
            state, step = self._loop(state, step, feed, profiler)
        return self._result(state), {"steps": step, "seconds": time.perf_counter() - started}

    def _loop(self, state: TrainState, step: int, feed: Feed, profiler: Profiler) -> tuple[TrainState, int]:
        s, pending, fed = self.settings, None, None
        flops, vote = step_flops(self.stage, self.run.placement), hosts.Vote(self._mesh)
        meter = Meter(s, self.stage.batch_rows * self.stage.num_frames, flops, step)
        first, saved, stop = step, step, False
        while step < s.steps and not stop:
            if vote.ask(interrupt.requested() is not None):
                self._stop(state, step, saved, pending, fed)
            # Metrics are read one step late. By then the next step is queued, so no device waits for the host.
            previous, (fed, waited) = fed, feed.get()
            meter.waited(waited)
            if fed is None:
                self._stop(state, step, saved, pending, previous)
            profiler.before(step)
            # A transfer from the host would stall every step, so the guard makes it an error.
            with jax.transfer_guard_host_to_device("disallow"):
                state, metrics = self._step(state, self.frozen, fed.device)
            step += 1
            if pending is not None:
                self._check(pending, state, previous)
            if step == first + 1:
                jax.block_until_ready(metrics)
                meter.restart(step)
            profiler.after(step, metrics)
            pending = (step, metrics)
            if step % s.log_every == 0 or step == s.steps:
                self._log(step, metrics, meter)
            if step % s.eval_every == 0 or step == s.steps:
                self._check(pending, state, fed)
                stop = self._evaluate(step, state)
                meter.restart(step)
            if self.run.measure and step % self.run.measure_every == 0:
                self._check(pending, state, fed)
                self._measure(step, state)
                meter.restart(step)
            if step % s.save_every == 0 or step == s.steps or stop:
                self._check(pending, state, fed)
                meter.saved(self._save(state, step, fed, finished=stop or step == s.steps))
                saved = step
        return state, step

    def _stop(self, state: TrainState, step: int, saved: int, pending, fed: Fed | None) -> None:
        """Saves the step if it is not saved yet, and raises Interrupted."""
        if pending is not None:
            self._check(pending, state, fed)
        if step != saved:
            self._save(state, step, fed, finished=False)
        self._writer.close()
        say(f"{self.stage.name}: stopped at step {step} of {self.settings.steps}{', which is saved' if step else ''}")
        raise interrupt.Interrupted(interrupt.requested() or "another process was asked to stop")

    def _restore(self, batches: Iterator[Batch]) -> tuple[TrainState, bool]:
        directory = self._directory
        steps = steps_in(directory)
        hosts.agree({f"checkpoints of {self.stage.name}": steps})
        if not steps:
            return self._fresh(), False
        # Hosts read shards of a checkpoint together, so none may fall back to another step on its own.
        step, (state, data, meta, best) = fall_back(directory, steps[-1:] if hosts.several() else steps, self._read)
        for unreadable in steps[steps.index(step) + 1 :]:
            set_aside(directory, unreadable)
        batches.set_state(data)
        self._best, self._bad_evals, self._best_params = meta.best, meta.bad_evals, best
        if meta.best is not None and meta.best_of != self.stage.selects_on and not meta.finished:
            # Values of two metrics cannot be compared, so the best parameters are searched for anew.
            self._best, self._bad_evals, self._best_params = None, 0, None
        if not meta.finished:
            say(f"{self.stage.name}: resuming at step {step} of {self.settings.steps}")
        return state, meta.finished

    def _fresh(self) -> TrainState:
        state = self._create()
        batches = self.run.train_batches()
        first = put_batch(next(batches), self._mesh)
        batches.close()
        # The number of a step that no run reaches. The next number gives the key of the initial parameters.
        key = step_key(self.run.seed, self.stage, 2**31 - 2)
        params = jax.jit(self.stage.prepare)(state.params, first, key)
        if self.settings.start_from:
            params = adopt(params, self.run.read_start(), self.settings.renew)
        shardings = jax.tree.map(lambda x: x.sharding, self._shapes.params)
        params = jax.device_put(params, shardings)
        return state.replace(params=params, averaged=self._copy(params) if self.settings.ema else None)

    def _read(self, step: int) -> tuple[TrainState, dict[str, Any], Meta, Params | None]:
        """Reads a checkpoint into its shards: train state, iterator's state, meta and best parameters.

        If the stage is over, the train state has no optimiser state.
        """
        directory = self._directory
        meta = read_meta(directory, step)
        self.run.check_saved(meta, directory)
        target = self._frozen_shapes | {self.stage.name: self._shapes.params}
        check_shapes(directory, step, "params", target)
        params = read_item(directory, step, "params", target)[self.stage.name]
        if meta.finished:
            rest = TrainState(jnp.int32(step), {}, {}, {}, jnp.bool_(False))
        else:
            saved = read_item(directory, step, "optimizer", self._shapes.saved)
            rest = TrainState(saved.step, {}, saved.opt_state, saved.extra, saved.failed)
        best = None if meta.best is None else read_item(directory, step, "best", self._shapes.params)
        if self._shapes.averaged is not None and not meta.finished:
            rest = rest.replace(averaged=self._read_averaged(step, meta, params))
        return rest.replace(params=params), read_json(directory, step, "data"), meta, best

    def _read_averaged(self, step: int, meta: Meta, params: Params) -> Params:
        """Reads the averaged parameters; a run that only now averages begins with the trained ones."""
        if not meta.config["stages"][self.stage.name].get("ema"):
            return self._copy(params)
        return read_item(self._directory, step, "averaged", self._shapes.params)

    def _save(self, state: TrainState, step: int, fed: Fed, finished: bool) -> float:
        """Starts to write a checkpoint and returns the seconds for which this blocked the loop."""
        started = time.perf_counter()
        self._writer.wait()
        # The next step donates the state's buffers while the checkpoint is being written.
        state = self._copy(state)
        items = {
            "params": self.frozen | {self.stage.name: state.params},
            "optimizer": state.saved,
            "example": dataclasses.asdict(self._example_batch),
        }
        if self._best_params is not None:
            items["best"] = self._best_params
        if state.averaged is not None:
            items |= {"averaged": state.averaged, "trained": state.params}
        meta = dataclasses.replace(
            self.run.meta,
            stage=self.stage.name,
            finished=finished,
            best=self._best,
            bad_evals=self._bad_evals,
            best_of=self.stage.selects_on,
        )
        if finished and self._best_params is not None:
            items["params"] = self.frozen | {self.stage.name: self._best_params}
        elif finished and state.averaged is not None:
            items["params"] = self.frozen | {self.stage.name: state.averaged}
        self._writer.save(step, items, fed.state, meta)
        if fed.report:
            say(fed.report)
            self._history.write({"step": step, "data": fed.report})
        return time.perf_counter() - started

    def _first_row(self) -> Batch:
        batches = self.run.train_batches()
        row = jax.tree.map(lambda x: np.asarray(x[:1]), next(batches))
        batches.close()
        return row

    def _log(self, step: int, metrics: dict[str, jax.Array], meter: Meter) -> None:
        values = {k: float(v) for k, v in jax.device_get(metrics).items() if k != "failed"}
        speed = meter.read(step)
        say(status_line(self.stage.name, self.settings, step, values, speed))
        self._history.write({"step": step, **values, **speed})
        for board in self._boards:
            board.scalars(step, values | {f"speed/{k}": v for k, v in speed.items()})
        warning = self.stage.warning(values)
        if warning and not self._warned and step >= self.settings.steps // 10:
            say(f"warning: {warning}")
            self._warned = True

    def _evaluate(self, step: int, state: TrainState) -> bool:
        if not self.run.valid_batches:
            return False
        batches = [put_batch(batch, self._mesh) for batch in self.run.valid_batches]
        params = state.best_guess
        all_metrics = jax.device_get([self._loss(params, self.frozen, batch) for batch in batches])
        means = {f"val/{k}": float(np.mean([m[k] for m in all_metrics])) for k in all_metrics[0]}
        say(f"{self.stage.name:<10}held out at step {step}: " + "  ".join(f"{k[4:]} {v:.4g}" for k, v in means.items()))
        self._history.write({"step": step, **means})
        film = self._film(params, self.frozen, batches[0]) if self.run.tensorboard or self.run.wandb else None
        for board in self._boards:
            board.scalars(step, means)
            if film is not None:
                board.film(step, "film", np.asarray(film))
        return self._select(means[f"val/{self.stage.selects_on}"], state)

    def _measure(self, step: int, state: TrainState) -> None:
        """Logs the figures that `Run.measure` computes from the parameters of this step."""
        figures = self.run.measure(self.frozen | {self.stage.name: state.best_guess})
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        say(f"{self.stage.name:<10}evaluated at step {step}: {shown}")
        figures = {f"evaluation/{name}": value for name, value in figures.items()}
        self._history.write({"step": step, **figures})
        for board in self._boards:
            board.scalars(step, figures)

    def _select(self, value: float, state: TrainState) -> bool:
        if not self.settings.patience:
            return False
        if self._best is None or value < self._best:
            self._best, self._bad_evals = value, 0
            self._best_params = self._copy(state.best_guess)
        else:
            self._bad_evals += 1
        if self._bad_evals >= self.settings.patience:
            say(f"{self.stage.name}: no better for {self._bad_evals} evaluations; keeping the best ({self._best:.4g})")
            return True
        return False

    def _result(self, state: TrainState) -> Params:
        params = state.best_guess if self._best_params is None else self._best_params
        return self.frozen | {self.stage.name: params}

    def _check(self, pending: tuple[int, dict], state: TrainState, fed: Fed) -> None:
        step, metrics = pending
        if not bool(metrics["failed"]):
            return
        failed_step = int(state.step)
        directory = self.run.workdir.failures / self.stage.name
        key = step_key(self.run.seed, self.stage, failed_step)
        self._writer.wait()  # two of Orbax's writers at once would interfere
        items = {"params": self.frozen | {self.stage.name: state.params}}
        meta = dataclasses.replace(self.run.meta, stage=self.stage.name)
        failure.save(directory, failed_step, items, fed.device, meta)
        report = failure.explain(self.stage, state.params, self.frozen, fed.device, key, self.run.placement)
        failure.save_report(directory, failed_step, self.run.seed, report)
        bad = report["not_finite"]["gradients"]
        raise WhaleError(
            f"Stage {self.stage.name}: step {failed_step} was not finite (loss {report['loss']}, gradient norm "
            f"{float(metrics['grad_norm']):.4g}, {len(bad)} parameter arrays with non-finite gradients"
            f"{', first ' + bad[0] if bad else ''}). Nothing was updated; the step's parameters, batch and norms "
            f"are in {directory / str(failed_step)}. Replay it with: whale replay {directory / str(failed_step)}"
        )
