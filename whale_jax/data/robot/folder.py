"""A folder of episodes. Each is a video or a directory of pictures, with a CSV of its actions.

    NAME.mp4 + NAME.csv,  or  NAME/000000.png ... + NAME.csv or NAME/actions.csv

The header of the CSV names its columns. `timestamp` (seconds), `reward`, `success`, `task` and `state.*` have the
meaning of their names, and all other columns are the action. There are as many rows as frames, or one fewer.
"""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.recorded import Recorded, Table, broken, check_rows
from whale_jax.data.media.videos import LastVideo, frame_times, picture

VIDEOS = (".mp4", ".mov", ".mkv", ".avi", ".webm")
PICTURES = (".png", ".jpg", ".jpeg")
ACTION, STATE = "action", "observation.state"
MARKS = "NAME.mp4 or NAME/*.png with NAME.csv"
_OWN = ("timestamp", "reward", "success")
_TEXT = "task"


def is_folder(root: Path) -> bool:
    """Returns whether a directory holds a table, a video or a directory of pictures."""
    return any(_tables_and_films(root))


def _tables_and_films(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Returns the CSVs, and the videos or directories of pictures, by the episode's name."""
    tables = {path.stem: path for path in root.glob("*.csv")}
    films = {path.stem: path for path in sorted(root.iterdir()) if path.suffix.lower() in VIDEOS}
    for path in sorted(root.iterdir()):
        if path.is_dir() and any(child.suffix.lower() in PICTURES for child in path.iterdir()):
            films[path.name] = path
            if (path / "actions.csv").exists():
                tables.setdefault(path.name, path / "actions.csv")
    return tables, films


class Folder:
    """A folder of episodes, in the order of their names.

    Args:
      root: the directory.
      assumed_hz: rate of pictures that have no times; None if unknown.

    Attributes:
      cameras: always empty.
      columns: columns of the first episode's CSV, by key.
      names: names of the episodes.

    Raises:
      WhaleError: a CSV has no frames, or frames have no CSV.
    """

    kind = "folder"

    def __init__(self, root: Path | str, assumed_hz: float | None = None):
        self.root, self._assumed = Path(root), assumed_hz
        self._pairs = list(self._find())
        self.names = [name for name, _, _ in self._pairs]
        self.cameras: list[str] = []
        self.columns = _split(_header(_rows(self._pairs[0][2])))
        self._video = LastVideo()

    def choose_camera(self, camera: str) -> str:
        """Returns "main". A folder has one view, so any other name is ignored."""
        return "main"

    def episodes(self, keys: Collection[str], camera: str, leave_out: Collection[str] = ()) -> Iterator[Recorded]:
        """Yields the episodes one by one and checks each CSV against its frames, which are decoded only on request.

        Raises:
          WhaleError: a value is not a number, time goes backwards, or frames and rows disagree. The message names file
            and row.
        """
        for name, frames, table in self._pairs:
            if name not in leave_out:
                yield self._recorded(name, frames, table)

    def close(self) -> None:
        """Closes the video that was read last."""
        self._video.close()

    def _find(self) -> Iterator[tuple[str, Path, Path]]:
        """Yields (name, video or directory of pictures, CSV)."""
        tables, films = _tables_and_films(self.root)
        if alone := sorted(set(tables) ^ set(films)):
            what = "no CSV of actions" if alone[0] in films else "no video and no directory of pictures"
            raise WhaleError(
                f"{self.root}: the episode {alone[0]} has {what} ({len(alone)} such in all); add or remove it."
            )
        for name in sorted(films):
            yield name, films[name], tables[name]

    def _recorded(self, name: str, film: Path, path: Path) -> Recorded:
        values, texts = _read_csv(path, name)
        pictures = sorted(p for p in film.iterdir() if p.suffix.lower() in PICTURES) if film.is_dir() else None
        shown = frame_times(film) if pictures is None else np.arange(len(pictures), dtype=np.float64)
        count, rows = len(shown), len(next(iter(values.values())))
        if rows not in (count, count - 1):
            raise broken(
                name, f"{film} has {count} frames, and {path} {rows} rows after its header; as many or one fewer fit."
            )
        tables = {
            key: Table(np.stack([values[n] for n in names], axis=1), names) for key, names in _split(values).items()
        }
        if STATE in tables:
            count = rows
        times = self._times(values, shown[:count], pictures is None, path)
        check_rows(name, str(path), 2, times, tables)
        rewards = values.get("reward", np.zeros(rows))
        success = values["success"] > 0 if "success" in values else rewards > 0
        rate = (count - 1) / (times[-1] - times[0]) if count > 1 else 0.0
        task = next((text for text in texts if text), name)
        tolerance = np.diff(shown).min(initial=1.0) / 4

        def frames(wanted: np.ndarray, side: int) -> np.ndarray:
            if pictures is None:
                return self._video.open(film).read(shown[wanted], side, tolerance)
            return np.stack([picture(pictures[i], side, str(pictures[i])) for i in wanted])

        return Recorded(name, str(path), 2, times, rate, tables, rewards, success, task, "main", frames)

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


def _split(header: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Returns the columns of the action and of the state, if there are any."""
    state = tuple(n for n in header if n.startswith("state."))
    columns = {ACTION: tuple(n for n in header if n not in (*_OWN, _TEXT, *state)), STATE: state}
    return {key: names for key, names in columns.items() if names}


def _header(rows: Iterator[list[str]]) -> list[str]:
    return [cell.strip() for cell in next(rows, [])]


def _rows(path: Path) -> Iterator[list[str]]:
    """Yields the cells of each row of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (OSError, UnicodeDecodeError) as error:
        raise WhaleError(f"{path} cannot be read as text ({error}).") from error


def _read_csv(path: Path, name: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the numeric columns by name, (N,) float64, and the texts. Raises WhaleError for a bad number."""
    rows = _rows(path)
    header = _header(rows)
    if not header or len(set(header)) != len(header):
        raise WhaleError(f"{path} needs a first row that names its columns, each once; it has: {', '.join(header)}.")
    numbers, texts = [], []
    for row, cells in enumerate(rows, start=2):
        if not cells:
            continue
        if len(cells) != len(header):
            raise broken(name, f"{path}, row {row} has {len(cells)} cells, and its header {len(header)}.")
        named = dict(zip(header, cells, strict=True))
        texts.append(named.pop(_TEXT, "").strip())
        try:
            numbers.append([float(cell) for cell in named.values()])
        except ValueError as error:
            raise broken(name, f"{path}, row {row}: {error}.") from error
    if not numbers:
        raise broken(name, f"{path} has no row after its header.")
    columns = [n for n in header if n != _TEXT]
    return dict(zip(columns, np.array(numbers, np.float64).T, strict=True)), texts
