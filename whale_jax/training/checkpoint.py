"""Self-contained checkpoints, written by Orbax in the background (items: params, optimizer, data, meta, example)."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import is_pointer, no_space, write
from whale_jax.base.machine import devices
from whale_jax.base.settings import flat
from whale_jax.base.text import say
from whale_jax.training import hosts
from whale_jax.training.former import FORMER, current, upgraded

T = TypeVar("T")
FORMAT = "whale-checkpoint/3"
_SPARE_BYTES = 4 << 20  # for Orbax's files and for the histories


@dataclasses.dataclass(frozen=True)
class Meta:
    """A checkpoint's description of itself, which suffices to rebuild the model.

    Attributes:
      stage: stage that wrote the checkpoint.
      model: "name" and "settings" of the world model, settings of its "heads" by name, and the "plugins" that have
        these models and heads.
      config: the whole config.
      action_spec: meaning of the actions.
      versions: versions of the libraries that wrote the checkpoint.
      specs: for a mixture, meaning of each data set's actions by name of the data set.
      statistics: statistics of the training episodes' actions, see `data.contract.actions.statistics`; for a mixture,
        by name of the data set.
      finished: whether the stage is over.
      best: best held-out value so far.
      best_of: the held-out metric that `best` is a value of.
      bad_evals: evaluations since then without a better value.
      order: the stages of the run, in the order of training.
      format: format of the checkpoint.
    """

    stage: str
    model: dict[str, Any]
    config: dict[str, Any]
    action_spec: dict[str, Any]
    versions: dict[str, str]
    specs: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    statistics: dict[str, Any] = dataclasses.field(default_factory=dict)
    finished: bool = False
    best: float | None = None
    bad_evals: int = 0
    order: list[str] = dataclasses.field(default_factory=list)
    best_of: str = "loss"
    format: str = FORMAT


class CheckpointWriter:
    """A writer of one stage's checkpoints in the background. Each checkpoint appears whole or not at all."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: futures.Future | None = None

    def save(self, step: int, items: dict[str, Any], data: dict[str, Any], meta: Meta) -> None:
        """Starts to save a checkpoint of `step`, after waiting for an earlier save.

        No buffer of `items` may be donated from here on.

        Args:
          step: number of steps done.
          items: pytrees by name (params, optimizer, …).
          data: state of the data iterator.
          meta: the checkpoint's description.

        Raises:
          WhaleError: this or an earlier save could not be written because the disk is full.
        """
        self.wait()
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args["data"] = ocp.args.JsonSave(data)
        args["meta"] = ocp.args.JsonSave(dataclasses.asdict(meta))
        with disk_errors(self._directory):
            check_space(self._directory, items)
            if hosts.several():
                # Hosts synchronise on the devices before they write, which only the thread of the steps may do.
                self._manager.save(step, args=ocp.args.Composite(**args))
            else:
                self._pending = self._thread.submit(self._manager.save, step, args=ocp.args.Composite(**args))

    def wait(self) -> None:
        """Waits for a running save.

        Raises:
          WhaleError: the save could not be written.
        """
        pending, self._pending = self._pending, None
        with disk_errors(self._directory):
            if pending is not None:
                pending.result()
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for a running save and releases the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()


@contextlib.contextmanager
def disk_errors(directory: Path):
    """Turns errors caused by a full disk into a WhaleError that names `directory`."""
    try:
        yield
    except (OSError, ValueError) as error:
        if no_space(error):
            raise _full(directory, "writing failed") from error
        raise


def check_space(directory: Path, items: Any) -> None:
    """Raises WhaleError if a checkpoint of these pytrees does not fit on the disk.

    The early check spares the user the tracebacks that Orbax's threads print when they run out of space.
    """
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(items))
    needed, free = size + size // 10 + _SPARE_BYTES, shutil.disk_usage(directory).free
    if free < needed:
        raise _full(directory, f"a checkpoint needs {needed / 2**20:.0f} MiB and {free / 2**20:.1f} MiB are free")


def _full(directory: Path, why: str) -> WhaleError:
    return WhaleError(
        f"The disk is full: {why} in {directory}. Earlier checkpoints there are whole; free some space and run the "
        "same command again to resume."
    )


def steps_in(directory: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a stage's directory, in ascending order."""
    if not directory.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory))


def read_json(directory: Path, step: int, item: str) -> dict[str, Any]:
    """Reads one JSON item of a checkpoint.

    Raises:
      BrokenCheckpoint: the item cannot be read.
    """
    path = directory / str(step) / item
    try:
        return json.loads((path / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error


def read_meta(directory: Path, step: int) -> Meta:
    """Reads a checkpoint's description of itself.

    Raises:
      WhaleError: it cannot be read or has another format.
    """
    values = read_json(directory, step, "meta")
    if values.get("format") == FORMER:
        values = upgraded(values, FORMAT)
    if values.get("format") != FORMAT:
        raise WhaleError(
            f"{directory / str(step)} has checkpoint format {values.get('format')!r} and this version reads "
            f"{FORMAT!r}; train again or use the version that wrote it."
        )
    known = {field.name for field in dataclasses.fields(Meta)}
    if newer := sorted(values.keys() - known):
        raise WhaleError(
            f"{directory / str(step)} describes itself with {', '.join(newer)}, which this version does not know; use "
            "the version of Whale that wrote it, or a later one."
        )
    return Meta(**values | {"config": current(values["config"])})


def write_meta(directory: Path, step: int, meta: Meta) -> None:
    """Describes a whole checkpoint anew. Its arrays stay, and so does the former description until this one is whole.

    Raises:
      WhaleError: the disk is full.
    """
    write(directory / str(step) / "meta" / "metadata", json.dumps(dataclasses.asdict(meta)).encode())


def read_item(directory: Path, step: int, item: str, target: Any = None) -> Any:
    """Reads one pytree of a checkpoint.

    Args:
      directory: directory of the stage's checkpoints.
      step: step of the checkpoint.
      item: name of the pytree.
      target: arrays, or shapes with shardings, that give structure and placement. None returns NumPy arrays.

    Raises:
      BrokenCheckpoint: the item is missing, truncated or does not fit the target.
      WhaleError: it may not be read by this user, or JAX does not start, which is no fault of the checkpoint.
    """
    path = directory / str(step) / item
    devices()  # what fails without them is no fault of the checkpoint
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            if target is None:
                return jax.tree.map(np.asarray, checkpointer.restore(path, _host_target(checkpointer, path)))
            return checkpointer.restore(path, target)
    except MemoryError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise _broken(path, error) from error


def _host_target(checkpointer, path):
    with _quiet():
        tree = checkpointer.metadata(path).item_metadata
    # The saved shardings may name devices that do not exist here.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), dict(tree))


def item_shapes(directory: Path, step: int, item: str) -> Any:
    """Returns shapes and types of one pytree of a checkpoint without reading its arrays.

    Raises:
      BrokenCheckpoint: the item cannot be read.
    """
    path = directory / str(step) / item
    devices()
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return _host_target(checkpointer, path)
    except Exception as error:
        raise _broken(path, error) from error


def check_shapes(directory: Path, step: int, item: str, target: Any) -> None:
    """Raises WhaleError if an array of a pytree has another shape in the checkpoint than in `target`.

    The checkpoint is then whole, and of another architecture.

    Raises:
      BrokenCheckpoint: the item cannot be read.
    """
    saved, wanted = flat(item_shapes(directory, step, item)), flat(target)
    for name in saved.keys() & wanted.keys():
        if tuple(saved[name].shape) != tuple(wanted[name].shape):
            raise WhaleError(
                f"{directory / str(step)} holds {name} of shape {tuple(saved[name].shape)}, and the config describes "
                f"{tuple(wanted[name].shape)}. Use another --workdir, or the version and the config that wrote it."
            )


@contextlib.contextmanager
def _quiet():
    """Silences Orbax's warning about a file that an item inside a checkpoint never has."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class BrokenCheckpoint(WhaleError):
    """A checkpoint, or an item of one, that is truncated or missing."""


def fall_back(directory: Path, steps: list[int], read: Callable[[int], T]) -> tuple[int, T]:
    """Returns the newest step that `read` can read, with its result, and warns about each step passed over.

    Args:
      directory: directory of the stage's checkpoints, for the warnings.
      steps: at least one step, in ascending order.
      read: reads the checkpoint of a step, or raises BrokenCheckpoint.

    Raises:
      BrokenCheckpoint: none of the checkpoints can be read.
    """
    errors: dict[int, BrokenCheckpoint] = {}
    for step in reversed(steps):
        try:
            found = read(step)
        except BrokenCheckpoint as error:
            errors[step] = error.with_traceback(None)  # a traceback would keep the partly read arrays in memory
            continue
        for broken, error in errors.items():
            say(f"warning: step {broken} of {directory} is passed over for step {step}. {error}")
        return step, found
    raise errors[steps[-1]]


def set_aside(directory: Path, step: int) -> Path:
    """Moves an unreadable checkpoint out of the way of the next one of this step.

    Says where the checkpoint went and returns that path.
    """
    target, number = directory.parent / "unreadable" / f"{directory.name}-{step}", 1
    while target.exists():
        number += 1
        target = target.with_name(f"{directory.name}-{step}-{number}")
    target.parent.mkdir(exist_ok=True)
    (directory / str(step)).rename(target)
    say(f"warning: {directory / str(step)} was moved to {target}")
    return target


def newest_meta(directory: Path) -> Meta | None:
    """Reads the newest readable description of a checkpoint. Returns None if there is no checkpoint.

    Raises:
      WhaleError: there are checkpoints, but no description can be read.
    """
    steps = steps_in(directory)
    return fall_back(directory, steps, lambda step: read_meta(directory, step))[1] if steps else None


def _broken(path: Path, error: Exception) -> WhaleError:
    """Returns the error for an item that cannot be read: it is broken only if its files can be opened."""
    for file in [path, *path.rglob("*")] if path.exists() else ():
        if not os.access(file, os.R_OK | (os.X_OK if file.is_dir() else 0)):
            return WhaleError(
                f"{file} of a checkpoint may not be read by this user; ask its owner for the permission. Nothing was "
                "changed."
            )
        if file.is_file() and is_pointer(file):
            return WhaleError(f"{file} of a checkpoint is a pointer of git-lfs; `git lfs pull` brings the data.")
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return BrokenCheckpoint(
        f"The checkpoint item {path} cannot be read ({first_line}). It is truncated or of another architecture; "
        f"delete or move {path.parent} to fall back on an earlier step, or point to another checkpoint."
    )
