"""LeRobot data sets of both layouts and folders, written as their own tools lay them out, each frame a known colour.

Independent of whale_jax: what is read back is held against `colour`, `action` and `state`.
"""

import csv
import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIDE, HZ = 48, 10
CAMERA = "observation.images.front"
TASKS = ("Pick up the cube.", "open the drawer")
JOINED = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def colour(episode: int, frame: int) -> tuple[int, int, int]:
    """Of a whole frame; two frames of an episode differ by 12 levels or more."""
    return 60 * (episode % 4) + 20, 12 * frame, 250 - 12 * frame


def action(episode: int, rows: int) -> np.ndarray:
    """(rows, 7) float32: an absolute pose that moves on a curve, its yaw through pi, and a gripper of 0 to 0.08."""
    t = np.arange(rows) + 10.0 * episode
    columns = [
        0.01 * t,
        np.sin(t / 5) / 10,
        np.cos(t / 7) / 10,
        0.02 * t % 1,
        0 * t,
        3.0 + 0.05 * (t % 10),
        0.08 * (t % 2),
    ]
    columns[5] = (columns[5] + np.pi) % (2 * np.pi) - np.pi
    return np.stack(columns, axis=1).astype(np.float32)


def state(episode: int, rows: int) -> np.ndarray:
    """(rows, 7) float32: where the arm is, half a centimetre behind."""
    return action(episode, rows) - np.float32([0.005, 0, 0, 0, 0, 0, 0])


def write_video(
    path: Path, episodes: list[tuple[int, int]], fps: int = HZ, codec: str = "libx264", side: int = SIDE
) -> None:
    """Frames of (episode, number of frames), one episode behind the other, each from a key frame on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        options = {"g": "2", "crf": "10", "preset": "ultrafast"} if codec == "libx264" else {"qscale": "2"}
        stream = output.add_stream(codec, fps, options=options)
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for episode, count in episodes:
            for i in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), colour(episode, i), np.uint8), "rgb24")
                if i == 0:
                    frame.pict_type = av.video.frame.PictureType.I
                output.mux(stream.encode(frame))
        output.mux(stream.encode())


def table(episode: int, rows: int, first: int, pictures: bool = False, fps: int = HZ) -> pa.Table:
    """The rows of one episode; next.reward is 1 with the last frame."""
    vectors = {"action": action(episode, rows), "observation.state": state(episode, rows)}
    columns = {k: pa.FixedSizeListArray.from_arrays(pa.array(v.reshape(-1)), 7) for k, v in vectors.items()}
    columns |= {
        "timestamp": pa.array((np.arange(rows) / fps).astype(np.float32)),
        "frame_index": pa.array(np.arange(rows)),
        "episode_index": pa.array(np.full(rows, episode)),
        "index": pa.array(first + np.arange(rows)),
        "task_index": pa.array(np.full(rows, episode % len(TASKS))),
        "next.reward": pa.array((np.arange(rows) == rows - 1).astype(np.float32)),
    }
    if pictures:
        columns[CAMERA] = pa.array([{"bytes": _png(colour(episode, i)), "path": f"{i}.png"} for i in range(rows)])
    return pa.table(columns)


def write_v21(root: Path, lengths: tuple[int, ...], cameras: tuple[str, ...] = (CAMERA,), dtype: str = "video") -> Path:
    """A file of rows and one of each camera for every episode; tasks and episodes as JSON lines."""
    info = _info("v2.1", lengths, cameras, dtype) | {"total_chunks": 1, "total_videos": len(lengths)}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    _write(root / "meta/info.json", json.dumps(info))
    tasks = [{"task_index": i, "task": task} for i, task in enumerate(TASKS)]
    episodes = [{"episode_index": e, "tasks": [TASKS[e % 2]], "length": n} for e, n in enumerate(lengths)]
    _write(root / "meta/tasks.jsonl", "\n".join(map(json.dumps, tasks)))
    _write(root / "meta/episodes.jsonl", "\n".join(map(json.dumps, episodes)))
    for e, rows in enumerate(lengths):
        write_table(
            root / f"data/chunk-000/episode_{e:06d}.parquet", table(e, rows, sum(lengths[:e]), dtype == "image")
        )
        for camera in cameras if dtype == "video" else ():
            write_video(root / f"videos/chunk-000/{camera}/episode_{e:06d}.mp4", [(e, rows)])
    return root


def write_v30(root: Path, lengths: tuple[int, ...], cameras: tuple[str, ...] = (CAMERA,), per_file: int = 2) -> Path:
    """`per_file` episodes to a table and to a video; tasks and episodes as parquet."""
    info = _info("v3.0", lengths, cameras, "video") | {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    }
    info["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    _write(root / "meta/info.json", json.dumps(info))
    write_table(root / "meta/tasks.parquet", pa.table({"task_index": list(range(len(TASKS))), "task": list(TASKS)}))
    lines = []
    for start in range(0, len(lengths), per_file):
        own, file = range(start, min(start + per_file, len(lengths))), start // per_file
        tables = [table(e, lengths[e], sum(lengths[:e])) for e in own]
        write_table(root / f"data/chunk-000/file-{file:03d}.parquet", pa.concat_tables(tables))
        for camera in cameras:
            write_video(root / f"videos/{camera}/chunk-000/file-{file:03d}.mp4", [(e, lengths[e]) for e in own])
        for e in own:
            first, begin = sum(lengths[:e]), sum(lengths[start:e]) / HZ
            line = {"episode_index": e, "tasks": [TASKS[e % 2]], "length": lengths[e], "stats/action/mean": [0.0] * 7}
            line |= {"data/chunk_index": 0, "data/file_index": file}
            line |= {"dataset_from_index": first, "dataset_to_index": first + lengths[e]}
            line |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            for camera in cameras:
                line |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
                line |= {
                    f"videos/{camera}/from_timestamp": begin,
                    f"videos/{camera}/to_timestamp": begin + lengths[e] / HZ,
                }
            lines.append(line)
    write_table(root / "meta/episodes/chunk-000/file-000.parquet", pa.Table.from_pylist(lines))
    return root


def write_folder(
    root: Path, lengths: dict[str, int], pictures: bool = False, extra: int = 0, times: bool = True, fps: int = HZ
) -> Path:
    """NAME.mp4 or NAME/000000.png ... with NAME.csv, which has `extra` rows more than there are frames."""
    root.mkdir(parents=True, exist_ok=True)
    for e, (name, count) in enumerate(lengths.items()):
        if pictures:
            for i in range(count):
                path = root / name / f"{i:06d}.png"
                _write(path, "")
                path.write_bytes(_png(colour(e, i)))
        else:
            write_video(root / f"{name}.mp4", [(e, count)], fps)
        rows = count + extra
        values = np.concatenate([action(e, rows), state(e, rows)], axis=1)
        header = [*JOINED, *(f"state.{n}" for n in JOINED)]
        with (root / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["timestamp", *header] if times else header)
            writer.writerows([[i / fps, *row] if times else row for i, row in enumerate(values.tolist())])
    return root


def write_table(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path)


def edit_table(path: Path, key: str, change) -> None:
    """Rewrites one column: change(values) gets a list of its rows and gives another."""
    rows = pq.read_table(path)
    place = rows.column_names.index(key)
    column = pa.array(change(rows[key].to_pylist()), rows[key].type)
    write_table(path, rows.set_column(place, key, column))


def assert_frames(frames: np.ndarray, episode: int, rows: np.ndarray) -> None:
    """Every frame (K, side, side, 3) is the recorded one of that row."""
    for frame, row in zip(frames, rows, strict=True):
        assert np.abs(frame.reshape(-1, 3).mean(0) - colour(episode, int(row))).max() < 6, (episode, row)


def _info(version: str, lengths: tuple[int, ...], cameras: tuple[str, ...], dtype: str) -> dict:
    numeric = {"dtype": "float32", "shape": [7], "names": {"motors": list(JOINED)}}
    features = {"action": numeric, "observation.state": {"dtype": "float32", "shape": [7], "names": list(JOINED)}}
    for key in ("timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward"):
        features[key] = {
            "dtype": "float32" if "." in key or key == "timestamp" else "int64",
            "shape": [1],
            "names": None,
        }
    picture = {"dtype": dtype, "shape": [SIDE, SIDE, 3], "names": ["height", "width", "channels"]}
    features |= {camera: picture for camera in cameras}
    totals = {"total_episodes": len(lengths), "total_frames": sum(lengths), "total_tasks": len(TASKS)}
    return {
        "codebase_version": version,
        "robot_type": "arx5",
        "fps": HZ,
        "chunks_size": 1000,
        "features": features,
        **totals,
    }


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _png(rgb: tuple[int, int, int]) -> bytes:
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), rgb).save(buffer, "png")
    return buffer.getvalue()
