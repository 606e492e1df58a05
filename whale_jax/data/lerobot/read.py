"""Reads LeRobot data sets of version 2.0, 2.1 and 3.0 without torch: tables with pyarrow, videos with PyAV.

    v2.1  meta/{info.json,tasks.jsonl,episodes.jsonl}  data/chunk-000/episode_000000.parquet
          videos/chunk-000/CAMERA/episode_000000.mp4
    v3.0  meta/{info.json,tasks.parquet,episodes/chunk-000/file-000.parquet}  data/chunk-000/file-000.parquet
          videos/CAMERA/chunk-000/file-000.mp4, several episodes per file

Pictures of the dtype "image" are in the tables instead.
"""

import dataclasses
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.data.contract.recorded import Recorded, Table, broken, check_rows, needed
from whale_jax.data.media.videos import LastVideo, picture

INFO = "meta/info.json"
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_OWN = ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward", "next.success")
_PICTURES = ("video", "image")


@dataclasses.dataclass(frozen=True)
class _Line:
    """The place of one episode: its table, and per camera the video file with its start and end there in seconds."""

    index: int
    length: int
    tasks: tuple[str, ...]
    table: Path
    videos: dict[str, tuple[Path, float, float | None]]


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
        self.info = _read_json(self.root / INFO)
        self.version = str(self.info.get("codebase_version"))
        if self.version not in _VERSIONS:
            raise WhaleError(
                f"{self.root / INFO} says codebase_version {self.version!r}; {', '.join(_VERSIONS)} can be read. "
                "LeRobot's own scripts convert between versions (lerobot/scripts)."
            )
        missing = [key for key in ("fps", "features", "data_path") if key not in self.info]
        if missing:
            raise WhaleError(f"{self.root / INFO} lacks {', '.join(missing)}; it is no whole LeRobot data set.")
        self._parquet = needed("pyarrow.parquet")
        self.rate_hz = float(self.info["fps"])
        features = self.info["features"]
        self.cameras = sorted(k for k, f in features.items() if f["dtype"] in _PICTURES and not _is_depth(f))
        numeric = {k: f for k, f in features.items() if f["dtype"] not in (*_PICTURES, "string") and k not in _OWN}
        self.columns = {key: _names(feature) for key, feature in numeric.items() if len(feature["shape"]) == 1}
        self._tasks = self._read_tasks()
        self._lines = sorted(self._read_lines(), key=lambda line: line.index)
        self._check_lines()
        self.names = [str(line.index) for line in self._lines]
        self._read: tuple[Path | None, Any] = (None, None)
        self._video = LastVideo()

    def choose_camera(self, camera: str) -> str:
        """Returns the camera with this name, or the only camera for "".

        Raises:
          WhaleError: there is no such camera, or no name and several cameras. The message lists their names.
        """
        if camera:
            if camera not in self.cameras:
                raise unknown_name(f"camera in {self.root}", camera, self.cameras)
            return camera
        if len(self.cameras) != 1:
            choice = f"--camera={self.cameras[0]}" if self.cameras else "record one"
            raise WhaleError(
                f"{self.root} has {len(self.cameras)} cameras ({', '.join(self.cameras)}), and none is named; name "
                f"one: {choice}, or `camera:` in the robot's YAML."
            )
        return self.cameras[0]

    def episodes(self, keys: Collection[str], camera: str, leave_out: Collection[str] = ()) -> Iterator[Recorded]:
        """Yields the episodes one by one and checks their tables. Frames are read only on request.

        Args:
          keys: columns to read in addition to time, task, reward and success; missing ones are ignored.
          camera: the camera, from `choose_camera`.
          leave_out: names of episodes to skip.

        Raises:
          WhaleError: rows, lengths, indices, times or videos contradict each other. The message names the file and the
            row.
        """
        for line in self._lines:
            if str(line.index) not in leave_out:
                yield self._recorded(line, [key for key in keys if key in self.columns], camera)

    def videos(self, camera: str) -> list[Path]:
        """Returns the video files of a camera, or none if its pictures are in the tables."""
        return sorted({line.videos[camera][0] for line in self._lines if camera in line.videos})

    def close(self) -> None:
        """Closes the video that was read last."""
        self._video.close()

    def _recorded(self, line: _Line, keys: list[str], camera: str) -> Recorded:
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
        self._check_counted(line, table, first_row)
        times = _column(table, "timestamp")
        tables = {key: Table(_matrix(table, key, where), self.columns[key]) for key in keys}
        check_rows(name, where, first_row, times, tables)
        off = np.abs(times - times[:1] - np.arange(len(times)) / self.rate_hz) * self.rate_hz
        if (off > 0.5).any():
            row = int(np.argmax(off > 0.5))
            raise broken(
                name,
                f"{where}, row {first_row + row}: timestamp {times[row]:g} s is {off[row]:.2f} frames off frame {row} "
                f"at {self.rate_hz:g} Hz.",
            )
        self._check_video(line, camera)
        rewards = _column(table, "next.reward") if "next.reward" in table.column_names else np.zeros(line.length)
        success = _column(table, "next.success") if "next.success" in table.column_names else rewards
        frames, task = self._frames(line, camera, times), self._task(line, table)
        return Recorded(name, where, first_row, times, self.rate_hz, tables, rewards, success > 0, task, camera, frames)

    def _rows(self, line: _Line) -> tuple[Any, int]:
        """Returns the rows of one episode without pictures, and its first row in the file."""
        if self._read[0] != line.table:
            if not line.table.exists():
                raise broken(str(line.index), f"The table {line.table} is missing.")
            try:
                file = self._parquet.ParquetFile(line.table)
                named = [c for c in file.schema_arrow.names if c not in self.cameras]
                self._read = (line.table, file.read(columns=named))
            except (OSError, ValueError) as error:
                raise broken(str(line.index), f"{line.table} cannot be read ({error}).") from error
        table = self._read[1]
        if "episode_index" not in table.column_names:
            raise WhaleError(f"{line.table} has no column 'episode_index'; it is no table of a LeRobot data set.")
        own = np.flatnonzero(_column(table, "episode_index") == line.index)
        if not len(own):
            raise broken(str(line.index), f"{line.table} has no row of episode {line.index}.")
        gaps = np.flatnonzero(np.diff(own) > 1)
        if len(gaps):
            raise broken(
                str(line.index), f"{line.table}, row {own[gaps[0]] + 1}: episode_index leaves {line.index} here."
            )
        return table.slice(int(own[0]), len(own)), int(own[0])

    def _check_counted(self, line: _Line, table: Any, first_row: int) -> None:
        """Checks that `frame_index` counts from 0, and that `index` increases by one."""
        for key in ("frame_index", "index"):
            if key not in table.column_names:
                continue
            found = _column(table, key)
            expected = np.arange(len(found)) + (found[0] if key == "index" else 0)
            wrong = np.flatnonzero(found != expected)
            if len(wrong):
                row = int(wrong[0])
                at = f"{line.table}, row {first_row + row}"
                raise broken(str(line.index), f"{at}: {key} is {found[row]:g} where {expected[row]:g} should follow.")

    def _check_video(self, line: _Line, camera: str) -> None:
        """Checks the number of frames in the video against the rows, as far as possible without decoding."""
        if camera not in line.videos:
            return
        (path, start, end), name = line.videos[camera], str(line.index)
        try:
            count = self._video.open(path).count
        except WhaleError as error:
            raise broken(name, str(error)) from error
        if end is None:
            if count not in (0, line.length):
                raise broken(name, f"{path} holds {count} frames, and {line.table} {line.length} rows.")
            return
        own, last = (end - start) * self.rate_hz, round(end * self.rate_hz)
        if round(own) != line.length:
            raise broken(
                name,
                f"{path} has {own:.1f} frames of episode {name} ({start:g} to {end:g} s), and {line.table} "
                f"{line.length} rows.",
            )
        if count and last > count:
            raise broken(name, f"{path} holds {count} frames, and episode {name} is said to end at frame {last}.")

    def _frames(self, line: _Line, camera: str, times: np.ndarray):
        if camera not in line.videos:
            return lambda rows, side: self._pictures(line, camera, rows, side)
        path, start, _ = line.videos[camera]
        tolerance = 0.5 / self.rate_hz

        def read(rows: np.ndarray, side: int) -> np.ndarray:
            return self._video.open(path).read(start + times[rows], side, tolerance)

        return read

    def _pictures(self, line: _Line, camera: str, rows: np.ndarray, side: int) -> np.ndarray:
        """Returns frames that are in the table, as encoded pictures or as paths to their files."""
        filters = [("episode_index", "=", line.index)]
        cells = self._parquet.read_table(line.table, columns=[camera], filters=filters).column(0).take(rows).to_pylist()
        out = np.empty((len(rows), side, side, 3), np.uint8)
        for frame, cell, row in zip(out, cells, rows, strict=True):
            where = f"{camera} in {line.table}, frame {row} of episode {line.index}"
            cell = cell or {}
            source = io.BytesIO(cell["bytes"]) if cell.get("bytes") else self.root / (cell.get("path") or "")
            frame[:] = picture(source, side, where)
        return out

    def _task(self, line: _Line, table: Any) -> str:
        if "task_index" not in table.column_names:
            return line.tasks[0] if line.tasks else ""
        number = int(_column(table, "task_index")[0])
        if number not in self._tasks:
            raise broken(
                str(line.index), f"{line.table} has the task_index {number}, which {self.root}/meta does not list."
            )
        return self._tasks[number]

    def _read_tasks(self) -> dict[int, str]:
        path = self.root / "meta/tasks.parquet"
        if not path.exists():
            lines = _read_lines(self.root / "meta/tasks.jsonl")
            return {int(line["task_index"]): str(line["task"]) for line in lines}
        table = self._parquet.read_table(path)
        text = next((c for c in table.column_names if c != "task_index"), None)
        if text is None or "task_index" not in table.column_names:
            raise WhaleError(f"{path} needs the columns task_index and task; it has {', '.join(table.column_names)}.")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))

    def _read_lines(self) -> Iterator[_Line]:
        if not self.version.startswith("v3"):
            chunk, video_path = int(self.info.get("chunks_size", 1000)), self.info.get("video_path")
            for line in _read_lines(self.root / "meta/episodes.jsonl"):
                index = int(line["episode_index"])
                names = {"episode_chunk": index // chunk, "episode_index": index}
                videos = {c: (self.root / video_path.format(video_key=c, **names), 0.0, None) for c in self._filmed()}
                table = self.root / self.info["data_path"].format(**names)
                yield _Line(index, int(line["length"]), tuple(line.get("tasks", ())), table, videos)
            return
        for path in sorted((self.root / "meta/episodes").glob("*/*.parquet")):
            file = self._parquet.ParquetFile(path)
            named = [c for c in file.schema_arrow.names if not c.startswith("stats/")]
            for line in file.read(columns=named).to_pylist():
                yield self._line_of_v3(line, path)

    def _line_of_v3(self, line: dict[str, Any], path: Path) -> _Line:
        try:
            chunk = {"chunk_index": line["data/chunk_index"], "file_index": line["data/file_index"]}
            videos = {}
            for camera in self._filmed():
                own = {key: line[f"videos/{camera}/{key}"] for key in ("chunk_index", "file_index")}
                start, end = (float(line[f"videos/{camera}/{key}_timestamp"]) for key in ("from", "to"))
                videos[camera] = (self.root / self.info["video_path"].format(video_key=camera, **own), start, end)
            table = self.root / self.info["data_path"].format(**chunk)
            return _Line(line["episode_index"], line["length"], tuple(line.get("tasks") or ()), table, videos)
        except (KeyError, TypeError) as error:
            raise WhaleError(
                f"{path} lacks {error} of an episode; it is no list of episodes of LeRobot {self.version}."
            ) from error

    def _filmed(self) -> list[str]:
        return [camera for camera in self.cameras if self.info["features"][camera]["dtype"] == "video"]

    def _check_lines(self) -> None:
        indices = [line.index for line in self._lines]
        if not indices:
            raise WhaleError(f"{self.root}/meta lists no episodes.")
        if indices != list(range(len(indices))):
            wrong = next(i for i, index in enumerate(indices) if i != index)
            raise WhaleError(f"{self.root}/meta lists episode {indices[wrong]} where {wrong} should follow.")
        total = self.info.get("total_episodes", len(indices))
        if total != len(indices):
            raise WhaleError(f"{self.root / INFO} says {total} episodes, and {self.root}/meta lists {len(indices)}.")


def _is_depth(feature: dict[str, Any]) -> bool:
    info = feature.get("info") or feature.get("video_info") or {}
    return bool(info.get("is_depth_map") or info.get("video.is_depth_map"))


def _names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Returns the names of a feature's columns. They may be in a list, under a heading, or next to their numbers."""
    names, width = feature.get("names"), feature["shape"][0]
    if isinstance(names, dict):
        lists = [value for value in names.values() if isinstance(value, list)]
        names = [n for value in lists for n in value] if lists else sorted(names, key=lambda n: names[n])
    return tuple(map(str, names)) if names and len(names) == width else tuple(map(str, range(width)))


def _column(table: Any, key: str) -> np.ndarray:
    """Returns a column as (N,) float64. A missing value becomes NaN, and a list of one value that value."""
    return _matrix(table, key, key)[:, 0]


def _matrix(table: Any, key: str, where: str) -> np.ndarray:
    """Returns a key's values as (N, C) float64."""
    column = table[key].combine_chunks()
    rows = len(column)
    if hasattr(column, "flatten") and "list" in str(column.type):
        flat = column.flatten()
        if rows and len(flat) % rows:
            raise WhaleError(f"{where}: {key} has rows of different widths.")
        column = flat
    return column.cast("float64").to_numpy(zero_copy_only=False).astype(np.float64).reshape(rows, -1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WhaleError(f"{path} cannot be read ({error.strerror}); give the root of a LeRobot data set.") from error
    except ValueError as error:
        raise WhaleError(f"{path} is not valid JSON ({error}); copy it anew.") from error
    if not isinstance(data, dict):
        raise WhaleError(f"{path} must hold one JSON object.")
    return data


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise WhaleError(f"{path} cannot be read ({error.strerror}); copy the whole data set anew.") from error
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            if line.strip():
                lines.append(json.loads(line))
        except ValueError as error:
            raise WhaleError(f"{path}, line {number} is not valid JSON ({error}); copy it anew.") from error
    return lines
