"""Writes LeRobot data sets of version 3.0, in the layout of LeRobot's own tools and without torch."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import replacing_directory
from whale_jax.data.contract.actions import ActionSpec, StateSpec
from whale_jax.data.contract.episode import Episode
from whale_jax.data.contract.recorded import needed
from whale_jax.data.lerobot.lists import INFO, OUTCOME_AT_LAST_ROW, OWN_INFO
from whale_jax.data.store.store import EpisodeStore

VERSION, CAMERA = "v3.0", "observation.images.main"
_NAME = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_CHUNK = 1000  # files of a directory
_QUANTILES = (0.01, 0.10, 0.50, 0.90, 0.99)
_VIDEO_MIB = 200
_VIDEO_BYTES = _VIDEO_MIB * 2**20
_SAMPLED = 32
_LEAST_AV1 = 64
_CODECS = {"libsvtav1": ("av1", {"g": "2", "crf": "20", "preset": "8"}), "libx264": ("h264", {"g": "2", "crf": "15"})}


def export_lerobot(store: EpisodeStore, root: Path | str, name: str) -> Path:
    """Writes an episode store as the LeRobot data set ROOT/name, one split after the other, and returns its path.

    Raises:
      WhaleError: the data set exists already, an episode cannot be read, or its frames have an odd size.
    """
    order = sorted(range(len(store)), key=lambda i: store.names("split").index(store.records[i]["split"]))
    splits = [store.records[i]["split"] for i in order]
    episodes = ((store.read(i), {}) for i in order)
    return write_lerobot(Path(root) / name, episodes, store.action_spec, store.state_spec, splits)


def write_lerobot(
    path: Path,
    episodes: Iterable[tuple[Episode, Mapping[str, np.ndarray]]],
    spec: ActionSpec,
    state: StateSpec | None = None,
    splits: Iterable[str] = (),
) -> Path:
    """Writes a data set next to `path`, moves it into place, and returns `path`.

    A row is a frame with the action taken there. Its columns are `action`, `observation.state` if there is one,
    next.reward, next.success and next.done, and the task in words. The last row of an episode holds its final frame,
    at which nothing was done: the deltas of its action and its reward are zero, and its success repeats that of the
    step that led there.

    Args:
      path: directory of the data set.
      episodes: pairs of an episode and its additional columns (L+1,) by key; all episodes have the same keys.
      spec, state: meaning of the actions, and of the state if there is one.
      splits: split of each episode, equal ones together; by default all are "train".

    Raises:
      WhaleError: the data set exists already, frames have an odd size, or pyarrow is not installed.
    """
    needed("pyarrow.parquet")
    if path.exists():
        raise WhaleError(f"{path} is there already; give another directory or name, or move it away.")
    with replacing_directory(path) as beside, contextlib.closing(_Writer(beside, spec, state)) as writer:
        for episode, further in episodes:
            writer.add(episode, further)
        writer.finish(list(splits))
    return path


@dataclasses.dataclass
class _Writer:
    """The open video of a data set that is being written, and the rows that go with it."""

    root: Path
    spec: ActionSpec
    state: StateSpec | None
    _tasks: list[str] = dataclasses.field(default_factory=list)
    _lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _rows: list[dict[str, np.ndarray]] = dataclasses.field(default_factory=list)
    _statistics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    _file: int = 0
    _first: int = 0  # the first episode in the open file
    _total: int = 0
    _video: Any = None
    _codec: str = ""
    _shape: tuple[int, ...] = ()

    def add(self, episode: Episode, further: Mapping[str, np.ndarray]) -> None:
        """Adds one episode to the open video and table."""
        count, index = len(episode.frames), len(self._lines)
        if self._video is None:
            self._video = _Film(self._path("videos/" + CAMERA, "mp4"), episode.frames.shape[1:3], self.spec.rate_hz)
        self._shape = episode.frames.shape[1:]
        start = self._video.count / self.spec.rate_hz
        self._video.write(episode.frames)
        task = str(episode.metadata.get("instruction") or episode.metadata.get("task", ""))
        if task not in self._tasks:
            self._tasks.append(task)
        rows = self._columns(episode, further) | {
            "timestamp": (np.arange(count) / self.spec.rate_hz).astype(np.float32),
            "frame_index": np.arange(count),
            "episode_index": np.full(count, index),
            "index": self._total + np.arange(count),
            "task_index": np.full(count, self._tasks.index(task)),
        }
        statistics = {key: _statistics(values) for key, values in rows.items()} | {CAMERA: _of_frames(episode.frames)}
        line = {"episode_index": index, "tasks": [task], "length": count}
        line |= {f"{of}/{key}": number for of in ("data", f"videos/{CAMERA}") for key, number in self._place().items()}
        line |= {"dataset_from_index": self._total, "dataset_to_index": self._total + count}
        end = self._video.count / self.spec.rate_hz
        line |= {f"videos/{CAMERA}/from_timestamp": start, f"videos/{CAMERA}/to_timestamp": end}
        line |= {f"stats/{key}/{name}": v for key, values in statistics.items() for name, v in values.items()}
        self._lines.append(line | {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self._statistics.append(statistics[CAMERA])
        self._rows.append(rows)
        self._total += count
        if self._video.bytes > _VIDEO_BYTES:
            self._close()

    def finish(self, splits: list[str]) -> None:
        """Closes the files and writes the metadata."""
        if not self._lines:
            raise WhaleError(f"There is no episode to write into {self.root.parent}.")
        import pyarrow as pa

        self._close()
        _write_parquet(self.root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(self._lines))
        _write_parquet(self.root / "meta/tasks.parquet", _table_of_tasks(self._tasks))
        statistics = {key: _statistics(values) for key, values in _joined(self._rows).items()}
        statistics[CAMERA] = _merged(self._statistics)
        (self.root / "meta/stats.json").write_text(json.dumps(statistics, indent=4))
        (self.root / INFO).write_text(json.dumps(self._info(splits), indent=4))
        own = {"action_spec": self.spec.to_json(), "state_spec": self.state.to_json() if self.state else None}
        (self.root / OWN_INFO).write_text(json.dumps(own | {OUTCOME_AT_LAST_ROW: False}, indent=4))

    def close(self) -> None:
        """Closes a video that is still open, for example because an episode could not be read."""
        if self._video is not None:
            self._video.close()

    def _columns(self, episode: Episode, further: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        still = np.array([kind == "delta" for kind in self.spec.kinds])
        last = np.where(still, np.float32(0), episode.actions[-1])
        columns = {"action": np.concatenate([episode.actions, last[None]]).astype(np.float32)}
        if self.state is not None and episode.state is not None:
            columns["observation.state"] = episode.state
        columns["next.reward"] = np.append(episode.rewards, 0).astype(np.float32)
        columns["next.success"] = np.append(episode.success, episode.success[-1])
        columns["next.done"] = np.arange(len(episode.frames)) == episode.length
        return columns | {key: np.asarray(values) for key, values in further.items()}

    def _place(self) -> dict[str, int]:
        """Returns the numbers of the open file and of its directory."""
        return {"chunk_index": self._file // _CHUNK, "file_index": self._file % _CHUNK}

    def _path(self, folder: str, suffix: str) -> Path:
        path = self.root / folder / f"{_NAME.format(**self._place())}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _close(self) -> None:
        if self._video is None:
            return
        self._video.close()
        _write_parquet(self._path("data", "parquet"), _table_of_rows(self._rows[self._first :]))
        self._codec, self._video, self._first = self._video.codec, None, len(self._rows)
        self._file += 1

    def _info(self, splits: list[str]) -> dict[str, Any]:
        names = {"action": list(self.spec.names)}
        if self.state is not None:
            names["observation.state"] = list(self.state.names)
        fps = int(self.spec.rate_hz) if float(self.spec.rate_hz).is_integer() else self.spec.rate_hz
        features: dict[str, Any] = {}
        for key, values in self._rows[0].items():
            shape = [values.shape[1]] if values.ndim > 1 else [1]
            features[key] = {"dtype": values.dtype.name, "shape": shape, "names": names.get(key), "fps": fps}
        height, width, channels = self._shape
        video = {"video.height": height, "video.width": width, "video.codec": self._codec, "video.pix_fmt": "yuv420p"}
        video |= {"video.fps": fps, "video.channels": channels, "is_depth_map": False, "has_audio": False}
        shape = {"shape": list(self._shape), "names": ["height", "width", "channels"]}
        features[CAMERA] = {"dtype": "video", **shape, "info": video}
        return {
            "codebase_version": VERSION,
            "robot_type": None,
            "total_episodes": len(self._lines),
            "total_frames": self._total,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": _VIDEO_MIB,
            "fps": fps,
            "splits": _ranges(splits or ["train"] * len(self._lines)),
            "data_path": f"data/{_NAME}.parquet",
            "video_path": f"videos/{{video_key}}/{_NAME}.mp4",
            "features": features,
        }


class _Film:
    """A video that is being written: AV1 if that encoder is available and accepts the size, otherwise H.264.

    codec is its name; count and bytes are the frames so far and their encoded size.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate_hz: float):
        if size[0] % 2 or size[1] % 2:
            raise WhaleError(f"Frames of {size[0]}x{size[1]} pixels cannot be encoded; a video needs an even size.")
        encoder = "libsvtav1" if "libsvtav1" in av.codecs_available and min(size) >= _LEAST_AV1 else "libx264"
        os.environ.setdefault("SVT_LOG", "1")
        self.codec, options = _CODECS[encoder]
        self.count = self.bytes = 0
        self._container = av.open(str(path), "w")
        rate = Fraction(rate_hz).limit_denominator(1000)
        self._stream = self._container.add_stream(encoder, rate, options=options)
        self._stream.height, self._stream.width, self._stream.pix_fmt = *size, "yuv420p"

    def write(self, frames: np.ndarray) -> None:
        """Encodes frames (N, H, W, 3) uint8. The first becomes a key frame."""
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if i == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._write(self._stream.encode(frame))
            self.count += 1

    def close(self) -> None:
        """Writes the remaining packets and closes the file."""
        self._write(self._stream.encode())
        self._container.close()

    def _write(self, packets: list[av.Packet]) -> None:
        self.bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


def _statistics(values: np.ndarray) -> dict[str, Any]:
    """Returns the statistics that LeRobot stores for a column (N,) or (N, C), per dimension."""
    table = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": table.min(0), "max": table.max(0), "mean": table.mean(0), "std": table.std(0)}
    quantiles = np.quantile(table, _QUANTILES, axis=0)
    found |= {f"q{round(100 * q):02d}": value for q, value in zip(_QUANTILES, quantiles, strict=True)}
    return {key: value.tolist() for key, value in found.items()} | {"count": [len(values)]}


def _of_frames(frames: np.ndarray) -> dict[str, Any]:
    """Returns statistics of a sample of frames (N, H, W, 3), per colour, from 0 to 1, in the shape (3, 1, 1)."""
    some = frames[:: -(-len(frames) // _SAMPLED)]
    found = _statistics(some.reshape(-1, 3) / np.float32(255))
    found.pop("count")
    return {key: [[[v]] for v in value] for key, value in found.items()} | {"count": [len(some)]}


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the statistics of all episodes together, weighted by their counts, as LeRobot's own tools do."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    weights = (counts / counts.sum())[:, None, None, None]
    stacked = {key: np.array([part[key] for part in parts]) for key in parts[0] if key != "count"}
    merged = {key: (weights * values).sum(0) for key, values in stacked.items()}
    spread = stacked["std"] ** 2 + (stacked["mean"] - merged["mean"]) ** 2
    merged |= {"min": stacked["min"].min(0), "max": stacked["max"].max(0), "std": np.sqrt((weights * spread).sum(0))}
    return {key: value.tolist() for key, value in merged.items()} | {"count": [int(counts.sum())]}


def _ranges(splits: list[str]) -> dict[str, str]:
    ends = {split: len(splits) - splits[::-1].index(split) for split in splits}
    return {split: f"{splits.index(split)}:{end}" for split, end in ends.items()}


def _joined(episodes: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([rows[key] for rows in episodes]) for key in episodes[0]}


def _table_of_rows(episodes: list[dict[str, np.ndarray]]) -> Any:
    import pyarrow as pa

    columns = {}
    for key, values in _joined(episodes).items():
        width = values.shape[1] if values.ndim > 1 else 1
        flat = pa.array(values.reshape(-1))
        columns[key] = flat if width == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
    return pa.table(columns)


def _table_of_tasks(tasks: list[str]) -> Any:
    """Returns a table whose index is the text, in the form that pandas writes and LeRobot expects."""
    import pyarrow as pa

    def described(name: str | None, kind: str, numpy: str, **metadata: str) -> dict[str, Any]:
        types = {"pandas_type": kind, "numpy_type": numpy}
        return {"name": name, "field_name": name, **types, "metadata": metadata or None}

    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks, pa.string())})
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [described(None, "unicode", "object", encoding="UTF-8")],
        "columns": [described("task_index", "int64", "int64"), described("task", "unicode", "object")],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_parquet(path: Path, table: Any) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="snappy")
