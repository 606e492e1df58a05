"""The descriptions in `meta` of a LeRobot data set: info.json, the tasks, and the list of episodes."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import check_file, reason
from whale_jax.base.order import natural
from whale_jax.data.contract.recorded import needed
from whale_jax.data.lerobot.clocks import Segment
from whale_jax.data.lerobot.tables import PICTURES

INFO = "meta/info.json"
# What only Whale knows of a data set that it wrote. LeRobot warns of keys in info.json that it does not know.
OWN_INFO, OUTCOME_AT_LAST_ROW = "meta/whale.json", "outcome_at_last_row"
MAJORS = (2, 3)


@dataclasses.dataclass(frozen=True)
class Line:
    """The place of one episode: its table, and per camera its video file and the episode's segment there."""

    index: int
    length: int
    tasks: tuple[str, ...]
    table: Path
    videos: dict[str, tuple[Path, Segment]]


class Lists:
    """The description that `meta` holds.

    Attributes:
      root, info: the directory, and info.json.
      version, major: format version, as it is written and as a number.

    Raises:
      WhaleError: a file is missing, cannot be read, or is of a version that cannot be read. The message names it.
    """

    def __init__(self, root: Path):
        self.root, self.info = root, _read_json(root / INFO)
        self.version = str(self.info.get("codebase_version"))
        found = re.fullmatch(r"v?(\d+)(\.\d+)*", self.version.strip())
        self.major = int(found[1]) if found else 0
        if self.major not in MAJORS:
            raise WhaleError(
                f"{root / INFO} says codebase_version {self.version!r}; versions 2 and 3 can be read. LeRobot's own "
                "scripts convert between versions (lerobot/scripts)."
            )
        if missing := [key for key in ("fps", "features", "data_path") if key not in self.info]:
            raise WhaleError(f"{root / INFO} lacks {', '.join(missing)}; it is no whole LeRobot data set.")
        _check_info(root / INFO, self.info)
        self._parquet = needed("pyarrow.parquet")

    def tasks(self) -> dict[int, str]:
        """Returns the tasks in words by their numbers."""
        path = self.root / "meta/tasks.parquet"
        if not path.exists():
            path = self.root / "meta/tasks.jsonl"
            return {_number(line, "task_index", path): str(_value(line, "task", path)) for line in _read_lines(path)}
        table = self._rows(path)
        text = next((c for c in table.column_names if c != "task_index"), None)
        if text is None or "task_index" not in table.column_names:
            raise WhaleError(f"{path} needs the columns task_index and task; it has {', '.join(table.column_names)}.")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))

    def _rows(self, path: Path) -> Any:
        """Reads a table of `meta` but for statistics."""
        try:
            check_file(path)
            file = self._parquet.ParquetFile(path)
            return file.read(columns=[c for c in file.schema_arrow.names if not c.startswith("stats/")])
        except (OSError, ValueError) as error:
            raise WhaleError(f"{path} cannot be read: {reason(path, error)}; copy it anew.") from error

    def episodes(self, filmed: list[str]) -> list[Line]:
        """Returns the episodes in the order of their indices, with their videos of the cameras `filmed`.

        Episodes may be missing between others, as they are after a deletion.

        Raises:
          WhaleError: there is none, one is listed twice, or there are fewer than info.json and the indices say.
        """
        lines = sorted(self._lines(filmed), key=lambda line: line.index)
        indices = [line.index for line in lines]
        if not indices:
            raise WhaleError(f"{self.root}/meta lists no episodes.")
        if twice := [index for index, after in zip(indices, indices[1:], strict=False) if index == after]:
            raise WhaleError(f"{self.root}/meta lists episode {twice[0]} twice; leave one of the lines out.")
        total = self.info.get("total_episodes")
        if total not in (None, len(indices), indices[-1] + 1):
            raise WhaleError(
                f"{self.root / INFO} says {total} episodes, and {self.root}/meta lists {len(indices)}; copy the data "
                "set anew, or correct total_episodes."
            )
        return lines

    def outcome_at_last_row(self) -> bool:
        """Returns whether the last row of an episode has an outcome of its own. That of a Whale export has none."""
        path = self.root / OWN_INFO
        return not path.exists() or bool(_read_json(path).get(OUTCOME_AT_LAST_ROW, True))

    def _lines(self, filmed: list[str]) -> Iterator[Line]:
        if self.major == 2:
            path, chunk = self.root / "meta/episodes.jsonl", self.info.get("chunks_size") or 1000
            for line in _read_lines(path):
                index, length = (_number(line, key, path) for key in ("episode_index", "length"))
                numbers = {"episode_chunk": index // chunk, "episode_index": index}
                whole = Segment(index, length, 0, None)
                videos = {c: (self._file("video_path", video_key=c, **numbers), whole) for c in filmed}
                yield Line(index, length, tuple(line.get("tasks") or ()), self._file("data_path", **numbers), videos)
            return
        for path in sorted((self.root / "meta/episodes").glob("*/*.parquet"), key=natural):
            for line in self._rows(path).to_pylist():
                yield self._line(line, path, filmed)

    def _line(self, line: dict[str, Any], path: Path, filmed: list[str]) -> Line:
        def place(what: str) -> dict[str, int]:
            return {key: _number(line, f"{what}/{key}", path) for key in ("chunk_index", "file_index")}

        index, length = (_number(line, key, path) for key in ("episode_index", "length"))
        videos = {}
        for camera in filmed:
            of = f"videos/{camera}"
            start, end = (_number(line, f"{of}/{key}_timestamp", path, float) for key in ("from", "to"))
            place_of_video = self._file("video_path", video_key=camera, **place(of))
            videos[camera] = (place_of_video, Segment(index, length, start, end))
        return Line(index, length, tuple(line.get("tasks") or ()), self._file("data_path", **place("data")), videos)

    def _file(self, key: str, **names: Any) -> Path:
        """Returns the path that a pattern of info.json gives."""
        try:
            return self.root / self.info[key].format(**names)
        except (KeyError, AttributeError, ValueError, IndexError) as error:
            raise WhaleError(
                f"{self.root / INFO} has the {key} {self.info.get(key)!r}, which is no pattern of version "
                f"{self.version} with {', '.join(names)}; copy it anew."
            ) from error


def _check_info(path: Path, info: dict[str, Any]) -> None:
    """Raises WhaleError for values of info.json that are not of their kind. The message names the first one."""
    fps, chunk, features = info["fps"], info.get("chunks_size") or 1000, info["features"]
    if not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise WhaleError(f"{path} has the fps {fps!r}; write the recording's frames per second.")
    if not isinstance(chunk, int) or chunk < 1:
        raise WhaleError(f"{path} has the chunks_size {chunk!r}, where a number belongs; copy it anew.")
    if not isinstance(features, dict):
        raise WhaleError(f"{path} has features that are no object with one entry for each column; copy it anew.")
    for key, feature in features.items():
        dtype, shape = (feature.get(name) if isinstance(feature, dict) else None for name in ("dtype", "shape"))
        sized = isinstance(shape, list) and all(isinstance(size, int) for size in shape)
        if not isinstance(dtype, str) or not sized and dtype not in (*PICTURES, "string"):
            raise WhaleError(f"{path} says no dtype or no shape of the feature {key}; copy it anew.")


def _value(line: Any, key: str, path: Path) -> Any:
    line = line if isinstance(line, dict) else {}
    if line.get(key) is None:
        of = f" of episode {line['episode_index']}" if "episode_index" in line else ""
        raise WhaleError(f"{path} has a line{of} without {key}; copy the data set anew.")
    return line[key]


def _number(line: Any, key: str, path: Path, kind: type = int) -> Any:
    """Returns the number that a line of a list has for a key; tables that were edited may have 3.0 for 3."""
    value = _value(line, key, path)
    try:
        number = kind(value)
        if number == float(value):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise WhaleError(f"{path} has {key} {value!r}, where a number belongs; copy the data set anew, or correct it.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        check_file(path)
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise WhaleError(f"{path} cannot be read ({error.strerror}); give the root of a LeRobot data set.") from error
    except (ValueError, RecursionError) as error:
        raise WhaleError(f"{path} is not valid JSON ({reason(path, error)}); copy it anew.") from error
    if not isinstance(data, dict):
        raise WhaleError(f"{path} must hold one JSON object.")
    return data


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        check_file(path)
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise WhaleError(f"{path} cannot be read ({error.strerror}); copy the whole data set anew.") from error
    except UnicodeDecodeError as error:
        raise WhaleError(f"{path} is not UTF-8 ({error}); convert it, or copy it anew.") from error
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):  # a text may hold other marks that end a line
        try:
            if line.strip():
                lines.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise WhaleError(
                f"{path}, line {number} is not valid JSON ({reason(path, error)}); copy it anew."
            ) from error
    return lines
