"""The descriptions in `meta` of a LeRobot data set: info.json, the tasks, and the list of episodes."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import reason
from whale_jax.base.order import natural
from whale_jax.data.contract.recorded import needed
from whale_jax.data.lerobot.clocks import Segment

INFO = "meta/info.json"
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
    """What `meta` says.

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
        self._parquet = needed("pyarrow.parquet")

    def tasks(self) -> dict[int, str]:
        """Returns the tasks in words by their numbers."""
        path = self.root / "meta/tasks.parquet"
        if not path.exists():
            lines = _read_lines(self.root / "meta/tasks.jsonl")
            return {int(line["task_index"]): str(line["task"]) for line in lines}
        table = self._parquet.read_table(path)
        text = next((c for c in table.column_names if c != "task_index"), None)
        if text is None or "task_index" not in table.column_names:
            raise WhaleError(f"{path} needs the columns task_index and task; it has {', '.join(table.column_names)}.")
        return dict(zip(table["task_index"].to_pylist(), map(str, table[text].to_pylist()), strict=True))

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
        total = self.info.get("total_episodes", len(indices))
        if total not in (len(indices), indices[-1] + 1):
            raise WhaleError(
                f"{self.root / INFO} says {total} episodes, and {self.root}/meta lists {len(indices)}; copy the data "
                "set anew, or correct total_episodes."
            )
        return lines

    def _lines(self, filmed: list[str]) -> Iterator[Line]:
        if self.major == 2:
            chunk, video_path = int(self.info.get("chunks_size", 1000)), self.info.get("video_path")
            for line in _read_lines(self.root / "meta/episodes.jsonl"):
                index, length = int(line["episode_index"]), int(line["length"])
                names, whole = (
                    {"episode_chunk": index // chunk, "episode_index": index},
                    Segment(index, length, 0, None),
                )
                videos = {c: (self.root / video_path.format(video_key=c, **names), whole) for c in filmed}
                table = self.root / self.info["data_path"].format(**names)
                yield Line(index, length, tuple(line.get("tasks", ())), table, videos)
            return
        for path in sorted((self.root / "meta/episodes").glob("*/*.parquet"), key=natural):
            file = self._parquet.ParquetFile(path)
            named = [c for c in file.schema_arrow.names if not c.startswith("stats/")]
            for line in file.read(columns=named).to_pylist():
                yield self._line(line, path, filmed)

    def _line(self, line: dict[str, Any], path: Path, filmed: list[str]) -> Line:
        try:
            index, length = int(line["episode_index"]), int(line["length"])
            videos = {}
            for camera in filmed:
                own = {key: int(line[f"videos/{camera}/{key}"]) for key in ("chunk_index", "file_index")}
                start, end = (float(line[f"videos/{camera}/{key}_timestamp"]) for key in ("from", "to"))
                place = self.root / self.info["video_path"].format(video_key=camera, **own)
                videos[camera] = (place, Segment(index, length, start, end))
            chunk = {key: int(line[f"data/{key}"]) for key in ("chunk_index", "file_index")}
            table = self.root / self.info["data_path"].format(**chunk)
            return Line(index, length, tuple(line.get("tasks") or ()), table, videos)
        except (KeyError, TypeError, ValueError) as error:
            raise WhaleError(
                f"{path} lacks {error} of an episode; it is no list of episodes of LeRobot {self.version}."
            ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WhaleError(f"{path} cannot be read ({error.strerror}); give the root of a LeRobot data set.") from error
    except ValueError as error:
        raise WhaleError(f"{path} is not valid JSON ({reason(path, error)}); copy it anew.") from error
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
            raise WhaleError(
                f"{path}, line {number} is not valid JSON ({reason(path, error)}); copy it anew."
            ) from error
    return lines
