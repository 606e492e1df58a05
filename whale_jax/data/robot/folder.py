"""A folder of episodes. Each is a video or a directory of pictures, with a CSV of its actions.

    NAME.mp4 + NAME.csv,  or  NAME/000000.png ... + NAME.csv or NAME/actions.csv

The header of the CSV names its columns. `timestamp` (seconds), `reward`, `success`, `task` and `state.*` have the
meaning of their names. All other columns are the action, but for those without a name and for further clocks and
counters, such as `time` or `index`. There are as many rows as frames, or one fewer.
"""

import csv
import functools
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import check_file, reason, stamp
from whale_jax.base.order import in_sequence, natural
from whale_jax.data.contract.recorded import BrokenEpisode, Recorded, Table, broken, check_rows, whole_ones
from whale_jax.data.media.videos import LastVideo, frame_times, picture

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
PICTURES = (".png", ".jpg", ".jpeg")
ACTION, STATE = "action", "observation.state"
MARKS = "NAME.mp4 or NAME/*.png with NAME.csv"
_OWN = ("timestamp", "reward", "success")
_TEXT = "task"
_TOO_FAR_APART = 20.0  # seconds between two rows of a robot's recording
_COUNTED = 1000  # rows too many that are still counted
_SMALLER_UNITS = {"milliseconds": 1e-3, "microseconds": 1e-6, "nanoseconds": 1e-9}
_TRUTHS = {"true": 1.0, "false": 0.0}
# Names of columns that tables have beside actions: row numbers as pandas writes them, clocks, and counters.
_NO_ACTION = re.compile(
    r"|unnamed.*|index|idx|row|t|(wall_?)?time([_ .(]?(s|sec|seconds|ms|us|ns|stamp)\)?)?|.*time_?stamp.*|stamp|date.*"
    r"|sec(onds?)?|(frame|step|episode)([_ ]?(index|idx|id|number|nr|no))?|datetime",
    re.IGNORECASE,
)


def is_folder(root: Path) -> bool:
    """Returns whether a directory holds a table, a video or a directory of pictures."""
    return any(_tables_and_films(root))


def _tables_and_films(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns the CSVs, and the videos or directories of pictures, by the episode's name."""
    there = [path for path in sorted(root.iterdir()) if not path.name.startswith(".")]
    tables = {path.stem: path for path in there if path.suffix.lower() == ".csv"}
    films = {path.stem: path for path in there if path.suffix.lower() in VIDEOS}
    for path in there:
        if path.is_dir() and any(_pictures(path)):
            films[path.name] = path
            if (path / "actions.csv").exists():
                tables.setdefault(path.name, path / "actions.csv")
    return tables, films


def _pictures(directory: Path) -> Iterator[Path]:
    """Yields the pictures in a directory, but for files of the operating system, whose names begin with a dot."""
    return (p for p in directory.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))


class Folder:
    """A folder of episodes, in the order of their names.

    Args:
      root: the directory.
      assumed_hz: rate of pictures that have no times; None if unknown.

    Attributes:
      cameras: always empty.
      columns: columns of the first CSV that can be read, by key.
      names: names of the episodes.
    """

    kind = "folder"

    def __init__(self, root: Path | str, assumed_hz: float | None = None):
        self.root, self._assumed = Path(root), assumed_hz
        self._tables, self._films = _tables_and_films(self.root)
        self.names = sorted({*self._tables, *self._films}, key=natural)
        self.cameras: list[str] = []
        self.columns = _split(next(filter(None, map(self._first_row, self.names)), ()))
        self._video = LastVideo()

    def choose_camera(self, camera: str) -> str:
        """Returns "main". A folder has one view, so any other name is ignored."""
        return "main"

    def episodes(self, keys: Collection[str], camera: str, leave_out: Collection[str] = ()) -> Iterator[Recorded]:
        """Yields the episodes one by one and checks each CSV against its frames, which are decoded only on request.

        Raises:
          WhaleError: a value is not a number, time goes backwards, frames and rows disagree, or one of them is missing.
            The message names file and row, and all episodes of which that is true.
        """
        wanted = [name for name in self.names if name not in leave_out]
        yield from whole_ones((functools.partial(self._recorded, name) for name in wanted), len(wanted))

    def close(self) -> None:
        """Closes the video that was read last."""
        self._video.close()

    def _first_row(self, name: str) -> list[str]:
        """Returns the first row of an episode's CSV; empty if there is none, of which `episodes` tells."""
        try:
            return _header(_rows(self._tables[name], name)) if name in self._tables else []
        except BrokenEpisode:
            return []

    def _recorded(self, name: str) -> Recorded:
        film, path = self._films.get(name), self._tables.get(name)
        if film is None or path is None:
            what = "no CSV of actions" if path is None else "no video and no directory of pictures"
            if film is None and any(_pictures(self.root)):
                what += f"; the pictures in {self.root} itself belong into {self.root / name}"
            raise broken(name, f"{self.root}: the episode {name} has {what}.")
        try:
            pictures = in_sequence(_pictures(film)) if film.is_dir() else None
            shown = frame_times(film) if pictures is None else np.arange(len(pictures), dtype=np.float64)
        except WhaleError as error:
            raise broken(name, str(error)) from error
        count, before = len(shown), stamp(path)
        values, texts = _read_csv(path, name, count + _COUNTED)
        rows = len(next(iter(values.values())))
        if rows not in (count, count - 1):
            said = f"{rows} rows" if rows < count + _COUNTED else f"{rows} rows and more"
            raise broken(
                name, f"{film} has {count} frames, and {path} {said} after its header; as many or one fewer fit."
            )
        tables = {
            key: Table(np.stack([values[n] for n in names], axis=1), names) for key, names in _split(values).items()
        }
        if STATE in tables:
            count = rows
        times = self._times(values, shown[:count], pictures is None, path)
        rewards = values.get("reward", np.zeros(rows))
        own = {key: Table(values[key][:, None], (key,)) for key in ("reward", "success") if key in values}
        check_rows(name, str(path), 2, times, tables | own)
        if "timestamp" in values:
            _check_seconds(name, path, times, self._assumed)
        success = values["success"] > 0 if "success" in values else rewards > 0
        rate = (count - 1) / (times[-1] - times[0]) if count > 1 else 0.0
        task = next((text for text in texts if text), name)
        tolerance = np.diff(shown).min(initial=1.0) / 4

        def frames(wanted: np.ndarray, side: int) -> np.ndarray:
            if pictures is None:
                return self._video.open(film).read(shown[wanted], side, tolerance)
            out = np.empty((len(wanted), side, side, 3), np.uint8)
            for frame, i in zip(out, wanted, strict=True):
                frame[:] = picture(pictures[i], side, str(pictures[i]))
            return out

        return Recorded(name, str(path), 2, times, rate, tables, rewards, success, task, "main", frames, before)

    def _times(self, values: dict[str, np.ndarray], shown: np.ndarray, filmed: bool, path: Path) -> np.ndarray:
        """Returns the time of each frame, from the table, or else the video, or else the rate in the robot's file."""
        if "timestamp" in values:
            times = values["timestamp"]
            missing = len(shown) - len(times)
            last = 2 * times[-1:] - times[-2:-1] if len(times) > 1 else times[-1:] + 1
            return np.append(times, last) if missing else times
        if filmed:
            return shown
        if self._assumed is None:
            raise WhaleError(
                f"{path} has no column timestamp, and pictures have no rate; write rate_hz: into the robot's YAML."
            )
        return shown / self._assumed


def _check_seconds(name: str, path: Path, times: np.ndarray, stated_hz: float | None) -> None:
    """Raises BrokenEpisode for times so far apart that they are in a smaller unit, unless the robot's file says so."""
    apart = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    if apart > _TOO_FAR_APART and not (stated_hz and stated_hz * apart < 2):
        unit = next((unit for unit, one in _SMALLER_UNITS.items() if apart * one <= _TOO_FAR_APART), "another unit")
        raise broken(
            name,
            f"{path}: timestamps are {apart:g} apart, which look like {unit}; write seconds. If they are seconds, "
            f"write rate_hz: {1 / apart:.4g} into the robot's YAML.",
        )


def _split(header: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Returns the columns of the action and of the state, if there are any.

    Columns without a name, and those that are named after time or after rows, are neither.
    """
    state = tuple(n for n in header if n.startswith("state."))
    aside = {n for n in header if n in (*_OWN, _TEXT, *state) or _NO_ACTION.fullmatch(n)}
    columns = {ACTION: tuple(n for n in header if n not in aside), STATE: state}
    return {key: names for key, names in columns.items() if names}


def _header(rows: Iterator[list[str]]) -> list[str]:
    return [cell.strip() for cell in next(rows, [])]


def _rows(path: Path, name: str) -> Iterator[list[str]]:
    """Yields the cells of each row of a CSV. Raises BrokenEpisode if it is no text."""
    try:
        check_file(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise broken(name, f"{path} cannot be read as text: {reason(path, error)}.") from error


def _read_csv(path: Path, name: str, most: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the numeric columns by name, (N,) float64 of at most `most` rows, and the texts.

    Raises BrokenEpisode for a bad number.
    """
    rows = _rows(path, name)
    header = _header(rows)
    _check_header(path, name, header)
    numbers, texts = [], []
    for row, cells in enumerate(rows, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise broken(name, f"{path}, row {row} has {len(cells)} cells, and its header {len(header)}.")
        named = dict(zip(header, cells, strict=True))
        texts.append(named.pop(_TEXT, "").strip())
        numbers.append([_number(path, name, row, *cell) for cell in named.items()])
        if len(numbers) == most:
            break  # it may still be growing
    if not numbers:
        raise broken(name, f"{path} has no row after its header.")
    columns = [n for n in header if n != _TEXT]
    return dict(zip(columns, np.array(numbers, np.float64).T, strict=True)), texts


def _check_header(path: Path, name: str, header: list[str]) -> None:
    """Raises BrokenEpisode if the first row of a CSV does not name its columns."""
    if not header:
        raise broken(name, f"{path} needs a first row that names its columns: {reason(path, 'it is blank')}.")
    if len(header) == 1 and (other := next((mark for mark in (";", "\t", "|") if mark in header[0]), None)):
        raise broken(name, f"{path} has {other!r} between its cells; write commas.")
    if all(_is_number(cell) for cell in header):
        raise broken(name, f"{path} begins with numbers; its first row must name the columns.")
    if twice := [cell for cell in dict.fromkeys(header) if header.count(cell) > 1]:
        raise broken(name, f"{path} names the column {twice[0]!r} {header.count(twice[0])} times; name each once.")


def _is_number(cell: str) -> bool:
    try:
        return bool(float(cell) or True)
    except ValueError:
        return False


def _number(path: Path, name: str, row: int, column: str, cell: str) -> float:
    if cell.strip().lower() in _TRUTHS:
        return _TRUTHS[cell.strip().lower()]
    try:
        return float(cell)
    except ValueError:
        if not column or _NO_ACTION.fullmatch(column):
            return 0.0  # nothing reads it
        what = f"is {cell!r}" if cell.strip() else "has no value"
        raise broken(name, f"{path}, row {row}: {column} {what}, and a number belongs there.") from None
