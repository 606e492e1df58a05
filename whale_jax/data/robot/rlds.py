"""A user's own RLDS data set, which a robot's contract explains, as it explains LeRobot data and folders.

A record is an episode. Every numeric field of a step is a table, and every picture at any depth is a camera. RLDS keeps
no times, so the robot's file gives the rate. Dimension key: N steps of an episode.
"""

import dataclasses
import functools
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from whale_jax.base.errors import BrokenRecord, WhaleError
from whale_jax.base.order import natural
from whale_jax.data.contract.recorded import Recorded, Table, broken, check_rows, chosen_camera, whole_ones
from whale_jax.data.media.videos import picture, scaled_array
from whale_jax.data.oxe.importing import one_version
from whale_jax.data.oxe.raw import WHOLE
from whale_jax.data.rlds.read import RldsDataset, select, spans

_STEPS = "steps/"
_OWN = ("is_first", "is_last", "is_terminal", "discount", "reward", "success")
_FIRST = ("train", "val", "valid", "validation", "test")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an episode's record is, or with a `fault` what there is in the place of it and of those after it."""

    path: epath.Path
    record: Any = None
    fault: str = ""


class OwnRlds:
    """An RLDS data set of a user's own.

    Args:
      root: DIR/<name>/<version>, or DIR/<name> with one version.
      rate_hz: steps per second, from the robot's file; None if unknown.

    Attributes:
      cameras: keys of the pictures of a step.
      columns: column names of each numeric field of a step; "0", "1", ... for lists.
      names: "split/number" of every episode, for --leave-out.

    Raises:
      WhaleError: the data set is not whole or holds no steps.
    """

    kind = "RLDS"

    def __init__(self, root: Path | str, rate_hz: float | None = None):
        self._dataset, self._rate = one_version(root), rate_hz
        self.root = Path(str(self._dataset.path))
        pictured, self.columns = _fields(self._dataset)
        self.cameras, self._encoded = sorted(pictured), pictured
        self._parser = functools.cache(self._dataset.parser)
        self._places = dict(_places(self._dataset))
        self.names = list(self._places)

    def choose_camera(self, camera: str) -> str:
        """Returns the camera with this name, or the only camera for "".

        Raises:
          WhaleError: there is no such camera, or no name and several cameras. The message lists their names.
        """
        return chosen_camera(self.root, self.cameras, camera)

    def episodes(self, keys: Collection[str], camera: str, leave_out: Collection[str] = ()) -> Iterator[Recorded]:
        """Yields the episodes one by one. Frames are read only on request.

        Raises:
          WhaleError: the rate is not known, or a record is damaged or contradicts itself. The message names the episode
            and the file, and all others of which that is true.
        """
        if self._rate is None:
            raise WhaleError(f"{self.root} has no times, as all RLDS data; write rate_hz: into the robot's YAML.")
        present = [key for key in keys if key in self.columns]
        wanted = [name for name in self.names if name not in leave_out]
        yield from whole_ones(
            (functools.partial(self._recorded, name, present, camera) for name in wanted), len(wanted)
        )

    def close(self) -> None:
        """Does nothing; no file stays open."""

    @functools.cached_property
    def _text(self) -> str | None:
        return next((key for key in self._dataset.fields if key.endswith("instruction")), None)

    def _recorded(self, name: str, keys: list[str], camera: str) -> Recorded:
        place = self._places[name]
        path = place.path
        if place.fault:
            raise broken(name, f"{path} {place.fault}.")
        own = [f"{_STEPS}{key}" for key in ("reward", "success") if f"{_STEPS}{key}" in self._dataset.fields]
        wanted = (*(f"{_STEPS}{key}" for key in keys), *own, *filter(None, [self._text]))
        try:
            record = self._dataset.format.read(path, place.record)
            fields = self._parser(wanted)(select(record, wanted))
            count = len(self._pictures(record, camera))
        except BrokenRecord as error:
            raise broken(name, f"{path}: episode {name} cannot be read ({error}).") from error
        where = f"{path}, episode {name}"
        tables = {key: self._table(name, where, key, fields[f"{_STEPS}{key}"], count) for key in keys}
        rewards = np.asarray(fields.get(f"{_STEPS}reward", np.zeros(count)), np.float64).reshape(-1)
        times = np.arange(count) / self._rate
        check_rows(name, where, 0, times, tables | {"reward": Table(rewards[:, None], ("reward",))})
        success = np.asarray(fields.get(f"{_STEPS}success", rewards)).reshape(-1) > 0
        text = fields.get(self._text) if self._text else None
        task = "" if text is None or not text.size else _words(text.reshape(len(text), -1)[0])
        frames = functools.partial(self._frames, name, camera)
        return Recorded(name, str(path), 0, times, self._rate, tables, rewards, success, task, camera, frames)

    def _table(self, name: str, where: str, key: str, values: np.ndarray, count: int) -> Table:
        if len(values) != count:
            raise broken(name, f"{where} has {len(values)} rows of {key} and {count} pictures.")
        return Table(np.asarray(values, np.float64).reshape(count, -1), self.columns[key])

    def _pictures(self, record: bytes, camera: str) -> Any:
        """Returns encoded pictures as places in the record, or arrays (N, H, W, 3) uint8."""
        key = f"{_STEPS}{camera}"
        return spans(record, key) if self._encoded[camera] else self._parser((key,))(select(record, [key]))[key]

    def _frames(self, name: str, camera: str, rows: np.ndarray, side: int) -> np.ndarray:
        path = self._places[name].path
        record = self._dataset.format.read(path, self._places[name].record)
        found, out = self._pictures(record, camera), np.empty((len(rows), side, side, 3), np.uint8)
        for frame, row in zip(out, rows, strict=True):
            if self._encoded[camera]:
                at, length = found[row]
                frame[:] = picture(io.BytesIO(record[at : at + length]), side, f"{camera}, step {row} in {path}")
            else:
                frame[:] = scaled_array(found[row], side)
        return out


def _fields(dataset: RldsDataset) -> tuple[dict[str, bool], dict[str, tuple[str, ...]]]:
    """Returns whether each camera's pictures are encoded, and the column names of each numeric field of a step."""
    cameras, columns = {}, {}
    for key, feature in dataset.step_features.items():
        shape = tuple(feature.shape)
        if dataset.is_picture(feature):
            if shape[-1] != 1 or "depth" not in key:
                cameras[key] = True
        elif len(shape) == 3 and shape[-1] == 3 and feature.np_dtype == np.uint8:
            cameras[key] = False
        elif key.rpartition("/")[2] not in _OWN and np.issubdtype(feature.np_dtype, np.number) and None not in shape:
            columns[key] = tuple(map(str, range(int(np.prod(shape, dtype=np.int64)))))
    return cameras, columns


def _places(dataset: RldsDataset) -> Iterator[tuple[str, _Place]]:
    """Yields the name of every episode with its place. What a file lacks counts as one episode with a fault."""
    names = [name for name in dataset.splits if name != WHOLE] or list(dataset.splits)
    for split in sorted(names, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), natural(name))):
        places = (
            place
            for path, promised in zip(dataset.splits[split], dataset.shard_lengths[split], strict=True)
            for place in _in_file(dataset, path, promised)
        )
        yield from ((f"{split}/{number}", place) for number, place in enumerate(places))


def _in_file(dataset: RldsDataset, path: epath.Path, promised: int) -> Iterator[_Place]:
    count = 0
    try:
        for record in dataset.format.places(path):
            yield _Place(path, record)
            count += 1
    except FileNotFoundError:
        yield _Place(path, fault="is missing")
    except BrokenRecord as error:
        yield _Place(path, fault=f"holds {error}, after {count} of its {promised} episodes")
    else:
        if count < promised:
            yield _Place(path, fault=f"ends after {count} of its {promised} episodes")


def _words(value: np.ndarray) -> str:
    first = value[0]
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)
