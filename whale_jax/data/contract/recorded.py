"""One episode as its source gives it, before the robot's contract is applied, and checks that apply to every source."""

import csv
import dataclasses
import importlib
import io
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.text import one_line

EXTRA = "pip install 'whale-jax[lerobot]', or in a checkout WHALE_EXTRAS=metaworld,viz,dev,lerobot bash launch/setup.sh"


_TOLD = 3  # faults that one message describes


@dataclasses.dataclass(frozen=True)
class Table:
    """Values (N, C) float64, one row per recorded step, and names of the C columns, or () if the source has none."""

    values: np.ndarray
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One episode of N frames.

    Attributes:
      name: its name for --leave-out.
      file, first_row: the table that holds it, and the row at which it begins there.
      times: (N,) seconds, increasing.
      rate_hz: frames per second of the recording.
      tables: tables by key, of N rows, or of N - 1 rows if nothing was commanded at the last frame.
      rewards, success: float64 and bool, one value per row, or one fewer if nothing was done at the last frame.
      task: what was to be done, in words.
      camera: the view that `frames` reads.
      frames: maps ascending rows (K,) and a side in pixels to frames (K, side, side, 3) uint8.
      stamp: `whale_jax.base.files.stamp` of `file` before it was read; None if it cannot be cut unnoticed.
      notes: what is unusual about it, each as the end of "episodes ...".
      doubts: the same, of what is taken for an accident if few episodes have it.
    """

    name: str
    file: str
    first_row: int
    times: np.ndarray
    rate_hz: float
    tables: Mapping[str, Table]
    rewards: np.ndarray
    success: np.ndarray
    task: str
    camera: str
    frames: Callable[[np.ndarray, int], np.ndarray]
    stamp: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class BrokenEpisode(WhaleError):
    """The error of an episode that contradicts itself.

    Attributes:
      name, problem: the episode's name, and what is wrong with it in a sentence.
      rate_hz: the even rate of its times if that is not the one stated, else None.
    """

    def __init__(self, name: str, problem: str, rate_hz: float | None = None):
        problem = one_line(problem)  # it names files
        super().__init__(f"{problem} Mend the file, or import the rest without this episode: {_option([name])}")
        self.name, self.problem, self.rate_hz = name, problem, rate_hz


class Reader(Protocol):
    """A source of recordings whose actions a robot's contract explains.

    Attributes:
      kind: the name of this kind of source.
      root: the directory.
      names: names of the episodes, for --leave-out.
      cameras: the cameras to choose from.
      columns: column names of each table, by its key.
    """

    kind: str
    root: Path
    names: Sequence[str]
    cameras: Sequence[str]
    columns: Mapping[str, tuple[str, ...]]

    def choose_camera(self, camera: str) -> str:
        """Returns the camera with this name, or the only camera for "".

        Raises:
          WhaleError: there is no such camera, or no name and several cameras. The message lists their names.
        """

    def episodes(self, keys: Collection[str], camera: str, leave_out: Collection[str] = ()) -> Iterator[Recorded]:
        """Yields the episodes and checks their tables. Frames are read only on request.

        Args:
          keys: tables to read; missing ones are ignored.
          camera: the camera, from `choose_camera`.
          leave_out: names of episodes to skip.

        Raises:
          WhaleError: the recording contradicts itself. The message names the file and the row.
        """

    def close(self) -> None:
        """Closes the file that was read last."""


def chosen_camera(root: Path, cameras: Sequence[str], camera: str) -> str:
    """Returns the camera with this name, or the only camera for ""; see `Reader.choose_camera`."""
    if camera:
        if camera not in cameras:
            raise unknown_name(f"camera in {root}", camera, cameras)
        return camera
    if len(cameras) != 1:
        choice = f"--camera={cameras[0]}" if cameras else "record one"
        raise WhaleError(
            f"{root} has {len(cameras)} cameras ({', '.join(cameras)}), and none is named; name one: {choice}, or "
            "`camera:` in the robot's YAML."
        )
    return cameras[0]


def broken(name: str, problem: str, rate_hz: float | None = None) -> BrokenEpisode:
    """Returns the error for an episode that contradicts itself, with the option that imports the others."""
    return BrokenEpisode(name, problem, rate_hz)


def whole_ones(reads: Iterable[Callable[[], Recorded]], count: int) -> Iterator[Recorded]:
    """Yields the `count` episodes that these functions read, and tells the faults of all others together at the end.

    Raises:
      WhaleError: episodes contradict themselves. The message names the first faults, and leaves all faulty ones out.
    """
    faults: list[BrokenEpisode] = []
    for read in reads:
        try:
            recorded = read()
        except BrokenEpisode as error:
            faults.append(error)
            continue
        yield recorded
    if len(faults) == 1 and count > 1:
        raise faults[0]
    if faults:
        raise WhaleError(_all_faults(faults, count))


def _all_faults(faults: Sequence[BrokenEpisode], count: int) -> str:
    told = " ".join(fault.problem for fault in faults[:_TOLD])
    more = f" {len(faults) - _TOLD} more have such faults." if len(faults) > _TOLD else ""
    rates = [fault.rate_hz for fault in faults]
    if None not in rates and max(rates) <= min(rates) * 1.01:
        rate = sum(rates) / len(rates)
        told += f" The times of these episodes run at {rate:.4g} Hz; if they are right, correct the stated rate."
    if len(faults) == count:
        return f"{told}{more} No episode is without a fault ({count} in all); mend the files."
    option = _option([fault.name for fault in faults])
    return f"{told}{more} Mend the files, or import the other {count - len(faults)} episodes: {option}"


def _option(names: Sequence[str]) -> str:
    """Returns the option that leaves episodes out, in one line as bash takes it, whatever they are called."""
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(names)
    text = row.getvalue().removesuffix("\n")
    if text.isprintable():
        return f"--leave-out={shlex.quote(text)}"
    return f"--leave-out=$'{''.join(map(_escaped, text))}'"


def _escaped(letter: str) -> str:
    """Returns a letter as it is written in $'...' of bash. A byte of a name that is no UTF-8 is a surrogate here."""
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if letter in "\\'":
        return f"\\{letter}"
    return letter if letter.isprintable() else "\\n" if letter == "\n" else f"\\U{code:08x}"


def check_rows(name: str, file: str, first_row: int, times: np.ndarray, tables: Mapping[str, Table]) -> None:
    """Raises WhaleError, naming file and row, for a value that is not finite or a time that does not increase.

    An action at the last frame leads nowhere, so it may lack a value.
    """
    for key, table in {"timestamp": Table(times[:, None], ("timestamp",)), **tables}.items():
        unused = key.startswith("action") and len(table.values) == len(times)
        bad = np.argwhere(~np.isfinite(table.values[: len(times) - unused]))
        if len(bad):
            row, column = map(int, bad[0])
            which = table.names[column] if table.names else f"column {column}"
            raise broken(
                name,
                f"{file} has a value that is not a number at row {first_row + row}: {key}, {which} "
                f"({len(bad)} such value(s) in episode {name}).",
            )
    steps = np.diff(times)
    if len(steps) and steps.min() <= 0:
        row = int(np.argmax(steps <= 0)) + 1
        raise broken(
            name,
            f"{file} goes back in time at row {first_row + row}: timestamp {times[row]:g} s follows "
            f"{times[row - 1]:g} s.",
        )


def check_image_size(image_size: int) -> None:
    """Raises WhaleError for a side of fewer than 8 pixels."""
    if image_size < 8:
        raise WhaleError(
            f"Frames of {image_size} pixels cannot be made; give a side of 8 pixels or more: --image-size=64."
        )


def needed(module: str) -> ModuleType:
    """Imports and returns an optional package that LeRobot data need.

    Raises:
      WhaleError: it is not installed. The message gives the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise WhaleError(f"LeRobot data need {package}, which is not installed: {EXTRA}") from error
