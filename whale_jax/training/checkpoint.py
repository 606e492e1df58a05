"""Checkpoints that stand alone, written by Orbax in the background (design: params, optimizer, data, meta, example)."""

import contextlib
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import no_space
from whale_jax.base.text import say
from whale_jax.training import hosts

T = TypeVar("T")
FORMAT = "whale-checkpoint/2"
_SPARE_BYTES = 4 << 20  # for Orbax's own files and for the histories


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself: enough to rebuild the model with nothing else.

    Attributes:
      stage: the stage that wrote it; `finished` once that stage is over.
      model: settings of all networks; config: the whole config; action_spec: what the actions mean.
      specs: what each data set's own actions mean, by name, if it was a mixture.
      statistics: of the training episodes' actions, see `data.contract.actions.statistics`; of a mixture by name.
      versions: of the libraries that wrote it.
      best, bad_evals: held-out selection so far.
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
    format: str = FORMAT


class CheckpointWriter:
    """Writes the checkpoints of one stage in the background; each appears whole or not at all."""

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(directory, options=options)
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: futures.Future | None = None

    def save(self, step: int, items: dict[str, Any], data: dict[str, Any], meta: Meta) -> None:
        """Starts to save pytrees `items` (params, optimizer, …), the data iterator's state and `meta` as of `step`.

        Waits for an earlier save. No buffer of `items` may be donated from here on.

        Raises:
          WhaleError: this or an earlier save could not be written (a full disk).
        """
        self.wait()
        args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        args["data"] = ocp.args.JsonSave(data)
        args["meta"] = ocp.args.JsonSave(dataclasses.asdict(meta))
        with disk_errors(self._directory):
            check_space(self._directory, items)
            if hosts.several():
                # Hosts meet on the devices before they write, which no other thread than that of the steps may do.
                self._manager.save(step, args=ocp.args.Composite(**args))
            else:
                self._pending = self._thread.submit(self._manager.save, step, args=ocp.args.Composite(**args))

    def wait(self) -> None:
        """Waits for the save that runs; raises WhaleError if it could not be written."""
        pending, self._pending = self._pending, None
        with disk_errors(self._directory):
            if pending is not None:
                pending.result()
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for what is being written."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()


@contextlib.contextmanager
def disk_errors(directory: Path):
    """Turns the errors of a full disk into a WhaleError that names `directory`."""
    try:
        yield
    except (OSError, ValueError) as error:
        if no_space(error):
            raise _full(directory, "writing failed") from error
        raise


def check_space(directory: Path, items: Any) -> None:
    """Raises WhaleError if a checkpoint of these pytrees does not fit on the disk.

    Asking first spares the user the tracebacks that Orbax's threads print when they run out of space.
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
    """Steps of the complete checkpoints in a stage's directory, ascending."""
    if not directory.is_dir():
        return []
    return sorted(ocp.utils.checkpoint_steps(directory))


def read_json(directory: Path, step: int, item: str) -> dict[str, Any]:
    """One JSON item of a checkpoint; raises WhaleError if it cannot be read."""
    path = directory / str(step) / item
    try:
        return json.loads((path / "metadata").read_text())
    except (OSError, ValueError) as error:
        raise _broken(path, error) from error


def read_meta(directory: Path, step: int) -> Meta:
    """The checkpoint's description of itself.

    Raises:
      WhaleError: it cannot be read or is of another format.
    """
    values = read_json(directory, step, "meta")
    if values.get("format") != FORMAT:
        raise WhaleError(
            f"{directory / str(step)} has checkpoint format {values.get('format')!r} and this version reads "
            f"{FORMAT!r}; train again or use the version that wrote it."
        )
    return Meta(**values)


def read_item(directory: Path, step: int, item: str, target: Any = None) -> Any:
    """One pytree of a checkpoint; `target` (arrays, or shapes with shardings) gives structure and placement.

    Raises:
      WhaleError: the item is missing, truncated or does not fit the target.
    """
    path = directory / str(step) / item
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
    # The shardings that were saved may name devices that are not here.
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=sharding), dict(tree))


def item_shapes(directory: Path, step: int, item: str) -> Any:
    """Shapes and types of one pytree of a checkpoint, without reading it; raises BrokenCheckpoint if it cannot be."""
    path = directory / str(step) / item
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return _host_target(checkpointer, path)
    except Exception as error:
        raise _broken(path, error) from error


@contextlib.contextmanager
def _quiet():
    """Orbax warns of a file that an item inside a checkpoint never has."""
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
    """The newest of `steps` (ascending, at least one) that `read` can read, and what it gave; says what it passed over.

    Raises:
      BrokenCheckpoint: none can be read.
    """
    errors: dict[int, BrokenCheckpoint] = {}
    for step in reversed(steps):
        try:
            found = read(step)
        except BrokenCheckpoint as error:
            errors[step] = error.with_traceback(None)  # which would keep what was read of it
            continue
        for broken, error in errors.items():
            say(f"warning: step {broken} of {directory} is passed over for step {step}. {error}")
        return step, found
    raise errors[steps[-1]]


def set_aside(directory: Path, step: int) -> Path:
    """Moves a checkpoint that cannot be read out of the way of the next one of this step; says where to."""
    target, number = directory.parent / "unreadable" / f"{directory.name}-{step}", 1
    while target.exists():
        number += 1
        target = target.with_name(f"{directory.name}-{step}-{number}")
    target.parent.mkdir(exist_ok=True)
    (directory / str(step)).rename(target)
    say(f"warning: {directory / str(step)} was moved to {target}")
    return target


def newest_meta(directory: Path) -> Meta | None:
    """What the newest checkpoint with a readable description says of itself; None if there is no checkpoint.

    Raises:
      WhaleError: none can be read.
    """
    steps = steps_in(directory)
    return fall_back(directory, steps, lambda step: read_meta(directory, step))[1] if steps else None


def _broken(path: Path, error: Exception) -> BrokenCheckpoint:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return BrokenCheckpoint(
        f"The checkpoint item {path} cannot be read ({first_line}). It is truncated or of another architecture; "
        f"delete or move {path.parent} to fall back on an earlier step, or point to another checkpoint."
    )
