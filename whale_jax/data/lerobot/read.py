"""Reads LeRobot data sets of versions 2 and 3 without torch: tables with pyarrow, videos with PyAV.

    v2.1  meta/{info.json,tasks.jsonl,episodes.jsonl}  data/chunk-000/episode_000000.parquet
          videos/chunk-000/CAMERA/episode_000000.mp4
    v3.0  meta/{info.json,tasks.parquet,episodes/chunk-000/file-000.parquet}  data/chunk-000/file-000.parquet
          videos/CAMERA/chunk-000/file-000.mp4, several episodes per file

Pictures of the dtype "image" are in the tables instead. Dimension key: N rows of an episode.
"""

import functools
import io
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import check_file, reason, stamp
from whale_jax.data.contract.recorded import (
    BrokenEpisode,
    Recorded,
    Table,
    broken,
    check_rows,
    chosen_camera,
    needed,
    whole_ones,
)
from whale_jax.data.lerobot.clocks import Place, check_times, match, tile
from whale_jax.data.lerobot.lists import INFO, Line, Lists
from whale_jax.data.lerobot.tables import OWN, PICTURES, cameras_of, column, matrix, names_of
from whale_jax.data.media.videos import LastVideo, frame_times, picture

__all__ = ["INFO", "LeRobot"]

_OUTCOMES = ("next.reward", "next.success")  # columns that an episode may lack


class LeRobot:
    """A LeRobot data set.

    Attributes:
      root, version, rate_hz: directory, format version and frames per second.
      cameras: keys of the cameras.
      columns: column names of each numeric key; "0", "1", ... for columns without names.
      names: names of the episodes, for --leave-out.

    Raises:
      WhaleError: a file is missing, cannot be read, or is of another version. The message names it.
    """

    kind = "LeRobot"

    def __init__(self, root: Path | str):
        self.root = Path(root)
        lists = Lists(self.root)
        self.info, self.version, self.rate_hz = lists.info, lists.version, float(lists.info["fps"])
        self._parquet = needed("pyarrow.parquet")
        features = self.info["features"]
        self.cameras = cameras_of(features)
        self._pictured = {key for key, feature in features.items() if feature["dtype"] in PICTURES}
        numeric = {k: f for k, f in features.items() if f["dtype"] not in (*PICTURES, "string") and k not in OWN}
        self.columns = {key: names_of(feature) for key, feature in numeric.items()}
        self._tasks = lists.tasks()
        self._outcomes = slice(None) if lists.outcome_at_last_row() else slice(-1)
        self._lines = lists.episodes([c for c in self.cameras if features[c]["dtype"] == "video"])
        self.names = [str(line.index) for line in self._lines]
        self._read: tuple[Path | None, Any, Any] = (None, None, None)  # a table's path, rows, and stamp before
        self._video = LastVideo()
        self._times: dict[Path, np.ndarray] = {}
        self._places: dict[Path, dict[int, Place | BrokenEpisode]] = {}

    def choose_camera(self, camera: str) -> str:
        """Returns the camera with this name, or the only camera for "".

        Raises:
          WhaleError: there is no such camera, or no name and several cameras. The message lists their names.
        """
        return chosen_camera(self.root, self.cameras, camera)

    def episodes(self, keys: Collection[str], camera: str, leave_out: Collection[str] = ()) -> Iterator[Recorded]:
        """Yields the episodes one by one and checks their tables. Frames are read only on request.

        Args:
          keys: columns to read in addition to time, task, reward and success; missing ones are ignored.
          camera: the camera, from `choose_camera`.
          leave_out: names of episodes to skip.

        Raises:
          WhaleError: rows, lengths, indices, times or videos contradict each other. The message names the file and the
            row, and all episodes of which that is true.
        """
        present = [key for key in keys if key in self.columns]
        wanted = [line for line in self._lines if str(line.index) not in leave_out]
        yield from whole_ones(
            (functools.partial(self._recorded, line, present, camera) for line in wanted), len(wanted)
        )

    def videos(self, camera: str) -> list[Path]:
        """Returns the video files of a camera, or none if its pictures are in the tables."""
        return sorted({line.videos[camera][0] for line in self._lines if camera in line.videos})

    def close(self) -> None:
        """Closes the video that was read last."""
        self._video.close()

    def _recorded(self, line: Line, keys: list[str], camera: str) -> Recorded:
        table, first_row = self._rows(line)
        name, where = str(line.index), str(line.table)
        for key in (*keys, "frame_index", "episode_index", "timestamp"):
            if key not in table.column_names:
                raise WhaleError(f"{where} has no column {key!r}, though {self.root / INFO} says so.")
        if table.num_rows != line.length:
            raise broken(
                name,
                f"{where} has {table.num_rows} rows of episode {name} (from row {first_row}), and the list of episodes "
                f"says {line.length}.",
            )
        notes = self._check_counted(line, table, first_row)
        stamps = self._column(name, table, "timestamp", where)
        there = {key for key in table.column_names if table[key].null_count < line.length}
        empty = [key for key in _OUTCOMES if key in table.column_names and key not in there]
        rewards = np.zeros(line.length)
        rewards = self._column(name, table, "next.reward", where) if "next.reward" in there else rewards
        success = self._column(name, table, "next.success", where) if "next.success" in there else rewards
        rewards, success = rewards[self._outcomes], success[self._outcomes]
        tables = {key: self._table(name, table, key, where, first_row) for key in keys}
        check_rows(name, where, first_row, stamps, tables | {"next.reward": Table(rewards[:, None], ("reward",))})
        times = stamps - stamps[:1]
        gaps = check_times(name, where, first_row, stamps, self.rate_hz)
        shown, counted, more = self._shown(line, camera, times, float(stamps[0]))
        return Recorded(
            name=name,
            file=where,
            first_row=first_row,
            times=times,
            rate_hz=self.rate_hz,
            tables=tables,
            rewards=rewards,
            success=success > 0,
            task=self._task(line, table),
            camera=camera,
            frames=self._frames(line, camera, shown),
            stamp=self._read[2],
            notes=tuple(filter(None, [*notes, *counted, *(f"whose {key} is empty" for key in empty)])),
            doubts=tuple(filter(None, [gaps, more])),
        )

    def _column(self, name: str, table: Any, key: str, where: str) -> np.ndarray:
        try:
            return column(table, key, where)
        except WhaleError as error:
            raise broken(name, str(error)) from error

    def _table(self, name: str, table: Any, key: str, where: str, first_row: int) -> Table:
        try:
            values = matrix(table, key, where, first_row)
        except WhaleError as error:
            raise broken(name, str(error)) from error
        if values.shape[1] != len(self.columns[key]):
            raise WhaleError(
                f"{where} has {values.shape[1]} numbers in a row of {key!r}, and {self.root / INFO} says "
                f"{len(self.columns[key])}; correct its shape there."
            )
        return Table(values, self.columns[key])

    def _rows(self, line: Line) -> tuple[Any, int]:
        """Returns the rows of one episode without pictures, and its first row in the file."""
        name = str(line.index)
        if self._read[0] != line.table:
            if not line.table.exists():
                raise broken(name, f"The table {line.table} is missing.")
            try:
                check_file(line.table)
                before, file = stamp(line.table), self._parquet.ParquetFile(line.table)
                named = [c for c in file.schema_arrow.names if c not in self._pictured]
                self._read = (line.table, file.read(columns=named), before)
            except (OSError, ValueError) as error:
                raise broken(name, f"{line.table} cannot be read: {reason(line.table, error)}.") from error
        table = self._read[1]
        if twice := [key for key, count in Counter(table.column_names).items() if count > 1]:
            raise broken(name, f"{line.table} has the column {twice[0]!r} twice.")
        if "episode_index" not in table.column_names:
            raise WhaleError(f"{line.table} has no column 'episode_index'; it is no table of a LeRobot data set.")
        own = np.flatnonzero(self._column(name, table, "episode_index", str(line.table)) == line.index)
        if not len(own):
            raise broken(name, f"{line.table} has no row of episode {line.index}.")
        gaps = np.flatnonzero(np.diff(own) > 1)
        if len(gaps):
            raise broken(name, f"{line.table}, row {own[gaps[0]] + 1}: episode_index leaves {line.index} here.")
        return table.slice(int(own[0]), len(own)), int(own[0])

    def _check_counted(self, line: Line, table: Any, first_row: int) -> list[str]:
        """Checks that `frame_index` counts from 0. Returns a note if `index`, which nothing here uses, does not."""
        found = self._column(str(line.index), table, "frame_index", str(line.table))
        wrong = np.flatnonzero(found != np.arange(len(found)))
        if len(wrong):
            row = int(wrong[0])
            at = f"{line.table}, row {first_row + row}"
            raise broken(str(line.index), f"{at}: frame_index is {found[row]:g} where {row} should follow.")
        there, own = "index" in table.column_names, (str(line.index), table, "index", str(line.table))
        numbers = self._column(*own) if there else found
        return ["whose index does not count on"] if (np.diff(numbers) != 1).any() else []

    def _shown(self, line: Line, camera: str, times: np.ndarray, begins: float) -> tuple[np.ndarray, list[str], str]:
        """Returns the times of the rows' frames in the video, and notes on its place and length there."""
        if camera not in line.videos:
            return times, [], ""
        name, (path, segment) = str(line.index), line.videos[camera]
        try:
            shown = self._times_in(path)
        except WhaleError as error:
            raise broken(name, str(error)) from error
        place = (slice(None), "") if segment.end is None else self._places_in(path, camera)[line.index]
        if isinstance(place, BrokenEpisode):
            raise place
        found, slower, more = match(name, str(path), times, shown[place[0]], begins)
        return found, [place[1], slower], more

    def _frames(self, line: Line, camera: str, shown: np.ndarray) -> Callable[[np.ndarray, int], np.ndarray]:
        if camera not in line.videos:
            return lambda rows, side: self._pictures(line, camera, rows, side)
        path, _ = line.videos[camera]
        tolerance = np.diff(self._times_in(path)).min(initial=1.0) / 4

        def read(rows: np.ndarray, side: int) -> np.ndarray:
            return self._video.open(path).read(shown[rows], side, tolerance)

        return read

    def _times_in(self, path: Path) -> np.ndarray:
        """Returns the times of all frames of a video."""
        if path not in self._times:
            self._times[path] = frame_times(path)
        return self._times[path]

    def _places_in(self, path: Path, camera: str) -> dict[int, Place | BrokenEpisode]:
        """Returns where each episode is in a video that holds several."""
        if path not in self._places:
            segments = [line.videos[camera][1] for line in self._lines if line.videos[camera][0] == path]
            self._places[path] = tile(str(path), segments, self._times_in(path), self.rate_hz)
        return self._places[path]

    def _pictures(self, line: Line, camera: str, rows: np.ndarray, side: int) -> np.ndarray:
        """Returns frames that are in the table, as encoded pictures or as paths to their files."""
        filters = [("episode_index", "=", line.index)]
        try:
            table = self._parquet.read_table(line.table, columns=[camera], filters=filters)
            cells = table.column(0).take(rows).to_pylist()
        except (OSError, ValueError) as error:
            raise WhaleError(f"{line.table} has no pictures of {camera}: {reason(line.table, error)}.") from error
        out = np.empty((len(rows), side, side, 3), np.uint8)
        for frame, cell, row in zip(out, cells, rows, strict=True):
            where = f"{camera} in {line.table}, frame {row} of episode {line.index}"
            source = _source(self.root, cell, where)
            frame[:] = picture(source, side, where)
        return out

    def _task(self, line: Line, table: Any) -> str:
        if "task_index" not in table.column_names:
            return line.tasks[0] if line.tasks else ""
        number = self._column(str(line.index), table, "task_index", str(line.table))[0]
        if number not in self._tasks:
            raise broken(
                str(line.index), f"{line.table} has the task_index {number:g}, which {self.root}/meta does not list."
            )
        return self._tasks[int(number)]


def _source(root: Path, cell: Any, where: str) -> Path | io.BytesIO:
    """Returns the picture of a table's cell: bytes, a path below `root`, or a dictionary of either."""
    parts = cell if isinstance(cell, dict) else {"bytes" if isinstance(cell, bytes) else "path": cell}
    if isinstance(parts.get("bytes"), bytes) and parts["bytes"]:
        return io.BytesIO(parts["bytes"])
    if isinstance(parts.get("path"), str) and parts["path"]:
        return root / parts["path"]
    raise WhaleError(f"{where} is {cell!r:.60} and no picture; leave its episode out, or name another camera.")
