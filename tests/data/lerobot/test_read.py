"""LeRobot data sets of both layouts: every frame and row comes back, and what contradicts itself is named."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.lerobot.read import LeRobot
from whale_jax.data.media.videos import Video, frame_times

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings

LENGTHS = (9, 7, 12)
KEYS = ("action", "observation.state")
V21_ROWS, V21_VIDEO = "data/chunk-000/episode_000001.parquet", "episode_000001.mp4"


def images(root):
    return recordings.write_v21(root, LENGTHS, dtype="image")


@pytest.fixture
def v21(tmp_path):
    return recordings.write_v21(tmp_path / "v21", LENGTHS)


def read(root, camera=recordings.CAMERA, leave_out=()):
    return list(LeRobot(root).episodes(KEYS, camera, leave_out))


def edit_info(root, change):
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    "form", [lambda r: recordings.write_v21(r, LENGTHS), lambda r: recordings.write_v30(r, LENGTHS), images]
)
def test_every_row_and_frame_of_every_layout_comes_back(tmp_path, form):
    episodes = read(form(tmp_path / "set"))
    assert len(episodes) == len(LENGTHS)
    for e, (episode, rows) in enumerate(zip(episodes, LENGTHS, strict=True)):
        np.testing.assert_array_equal(episode.tables["action"].values, recordings.action(e, rows))
        np.testing.assert_array_equal(episode.tables["observation.state"].values, recordings.state(e, rows))
        assert episode.tables["action"].names == recordings.JOINED
        assert episode.task == recordings.TASKS[e % 2] and episode.rewards.tolist() == [0.0] * (rows - 1) + [1.0]
        frames = episode.frames(np.arange(rows), 24)
        assert frames.shape == (rows, 24, 24, 3) and frames.dtype == np.uint8
        recordings.assert_frames(frames, e, np.arange(rows))
    for e in (2, 0, 1):
        wanted = np.array([1, 2, 5])
        recordings.assert_frames(episodes[e].frames(wanted, 24), e, wanted)


def version(text):
    return lambda root: edit_info(root, lambda info: info.update(codebase_version=text))


def one_frame_more(root):
    recordings.write_video(next(root.rglob(V21_VIDEO)), [(1, 8)])


def listed_one_longer(root):
    path, key = root / "meta/episodes/chunk-000/file-000.parquet", f"videos/{recordings.CAMERA}/to_timestamp"
    recordings.edit_table(path, key, lambda v: [v[0] + 0.1, *v[1:]])


def dropped(root):
    """Row 2 of episode 1 is missing, and its video has the frame."""
    path = root / V21_ROWS
    table = pq.read_table(path).take([0, 1, 3, 4, 5, 6])
    place = table.column_names.index("frame_index")
    recordings.write_table(path, table.set_column(place, "frame_index", pa.array(range(6))))
    lines = (root / "meta/episodes.jsonl").read_text()
    (root / "meta/episodes.jsonl").write_text(lines.replace('"length": 7', '"length": 6'))


def jumping_index(root):
    recordings.edit_table(root / V21_ROWS, "index", lambda v: [3 * i for i in v])


def without_the_second(root):
    path = root / "meta/episodes.jsonl"
    if path.exists():
        path.write_text("\n".join(line for i, line in enumerate(path.read_text().splitlines()) if i != 1))
    else:
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        recordings.write_table(path, pq.read_table(path).take([0, 2]))


def numbers_as_floats(root):
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    for key in [name for name in table.column_names if name.endswith("_index")]:
        table = table.set_column(table.column_names.index(key), key, table[key].cast(pa.float64()))
    recordings.write_table(path, table)


def plain_binary(root):
    for path in root.glob("data/*/*.parquet"):
        rows = pq.read_table(path)
        cells = pa.array([cell["bytes"] for cell in rows[recordings.CAMERA].to_pylist()], pa.binary())
        place = rows.column_names.index(recordings.CAMERA)
        recordings.write_table(path, rows.set_column(place, recordings.CAMERA, cells))


def depth_by_name(root):
    depth = f"{recordings.CAMERA}_depth"
    edit_info(root, lambda info: info["features"].update({depth: info["features"][recordings.CAMERA]}))
    shutil.copytree(root / f"videos/chunk-000/{recordings.CAMERA}", root / f"videos/chunk-000/{depth}")


def no_total(root):
    edit_info(root, lambda info: info.update(total_episodes=None))


V21, V30, IMAGES = recordings.write_v21, recordings.write_v30, lambda root, lengths: images(root)
TAKEN = {
    "v2.0": (V21, version("v2.0"), ""),
    "v3.1": (V30, version("v3.1"), ""),
    "3.0": (V30, version("3.0"), ""),
    "a video one frame longer": (V21, one_frame_more, "with more frames in the video than rows"),
    "a segment listed one frame longer": (V30, listed_one_longer, "that end elsewhere in the video than listed"),
    "a gap of a whole frame": (V21, dropped, "whose times have gaps of whole steps"),
    "an index that jumps": (V21, jumping_index, "whose index does not count on"),
    "an episode deleted, v2": (V21, without_the_second, ""),
    "an episode deleted, v3": (V30, without_the_second, ""),
    "no total of episodes": (V21, no_total, ""),
    "numbers as floats": (V30, numbers_as_floats, ""),
    "pictures as plain binary": (IMAGES, plain_binary, ""),
    "a depth camera told by its name": (V21, depth_by_name, ""),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_layout_that_is_unusual_and_clear_is_read_and_noted(tmp_path, name):
    form, change, note = TAKEN[name]
    root = form(tmp_path / "set", LENGTHS)
    change(root)
    episodes = read(root, LeRobot(root).choose_camera(""))
    assert {e.name for e in episodes} == ({"0", "2"} if "deleted" in name else {"0", "1", "2"})
    for episode in episodes:
        number = int(episode.name)
        rows = np.array([0, 1, 3, 4, 5, 6]) if note.endswith("steps") and number == 1 else np.arange(LENGTHS[number])
        expected = recordings.action(number, LENGTHS[number])[rows]
        np.testing.assert_array_equal(episode.tables["action"].values, expected)
        recordings.assert_frames(episode.frames(np.arange(len(rows)), 24), number, rows)
    notes = " ".join(note for e in episodes for note in (*e.notes, *e.doubts))
    assert note in notes if note else not notes


def test_an_action_of_rows_and_columns_is_laid_end_to_end(v21):
    for path in v21.glob("data/*/*.parquet"):
        rows = pq.read_table(path)
        pairs = pa.array([[x, [-y for y in x]] for x in rows["action"].to_pylist()], pa.list_(pa.list_(pa.float32())))
        recordings.write_table(path, rows.set_column(rows.column_names.index("action"), "action", pairs))
    edit_info(v21, lambda info: info["features"].update(action={"dtype": "float32", "shape": [2, 7], "names": None}))
    for e, episode in enumerate(read(v21)):
        action = recordings.action(e, LENGTHS[e])
        np.testing.assert_array_equal(episode.tables["action"].values, np.concatenate([action, -action], axis=1))
        assert episode.tables["action"].names == tuple(map(str, range(14)))


def test_a_reward_without_a_value_is_named_with_its_row(v21):
    recordings.edit_table(v21 / V21_ROWS, "next.reward", lambda v: [*v[:3], None, *v[4:]])
    with pytest.raises(WhaleError, match=r"not a number at row 3: next.reward.*--leave-out=1$"):
        read(v21)


def test_a_column_of_outcomes_that_is_empty_counts_as_missing_and_is_noted(v21):
    recordings.edit_table(v21 / V21_ROWS, "next.reward", lambda v: [None] * len(v))
    _, episode, *_ = read(v21)
    assert not episode.rewards.any() and not episode.success.any()
    assert "whose next.reward is empty" in episode.notes


def test_pictures_in_the_table_may_be_paths_and_what_is_neither_is_named(tmp_path):
    root = images(tmp_path)
    rows = pq.read_table(root / V21_ROWS)
    place = rows.column_names.index(recordings.CAMERA)
    for i, cell in enumerate(rows[recordings.CAMERA].to_pylist()):
        (root / f"{i}.png").write_bytes(cell["bytes"])
    paths = pa.array([f"{i}.png" for i in range(7)])
    recordings.write_table(root / V21_ROWS, rows.set_column(place, recordings.CAMERA, paths))
    recordings.assert_frames(read(root)[1].frames(np.arange(7), 24), 1, np.arange(7))
    recordings.write_table(root / V21_ROWS, rows.set_column(place, recordings.CAMERA, pa.array(range(7))))
    with pytest.raises(WhaleError, match=r"front in .*_000001.parquet, frame 0 of episode 1 is 0 and no picture"):
        read(root)[1].frames(np.arange(7), 24)


def test_both_forms_of_the_list_of_tasks_and_an_index_of_pandas_are_read(tmp_path):
    root = recordings.write_v30(tmp_path, LENGTHS)
    table = pa.table({"task_index": [1, 0], "__index_level_0__": list(reversed(recordings.TASKS))})
    recordings.write_table(root / "meta/tasks.parquet", table)
    assert [e.task for e in read(root)] == [recordings.TASKS[i % 2] for i in range(3)]
    (root / "meta/tasks.parquet").unlink()
    lines = [json.dumps({"task_index": i, "task": f"task {i}"}) for i in range(2)]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines))
    assert [e.task for e in read(root)] == ["task 0", "task 1", "task 0"]


def test_a_segment_is_reached_by_its_key_frame_and_what_follows_is_read_on(tmp_path):
    recordings.write_video(tmp_path / "long.mp4", [(e, 20) for e in range(4)])
    with Video(tmp_path / "long.mp4") as video:
        frames = video.read(np.arange(65, 70) / 10, 24, 0.05)
        assert video.decoded <= 7 and video.count == 80
        recordings.assert_frames(frames, 3, np.arange(5, 10))
        before = video.decoded
        recordings.assert_frames(video.read(np.arange(70, 75) / 10, 24, 0.05), 3, np.arange(10, 15))
        assert video.decoded == before + 5
        recordings.assert_frames(video.read(np.arange(3) / 10, 24, 0.05), 0, np.arange(3))
    np.testing.assert_allclose(frame_times(tmp_path / "long.mp4"), np.arange(80) / 10)


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("action", lambda v: [*v[:2], [*v[2][:6], float("nan")], *v[3:]], r"not a number at row 2: action, gripper"),
        ("frame_index", lambda v: [0, 1, 3, 2, 4, 5, 6], r"row 2: frame_index is 3 where 2 should follow"),
        ("timestamp", lambda v: [*v[:3], 0.1, *v[4:]], r"goes back in time at row 3: timestamp 0.1 s follows 0.2 s"),
        ("timestamp", lambda v: [t * 2 for t in v], r"row 1: timestamp 0.2 s is 1.00 frames off frame 1 at 10 Hz"),
        ("episode_index", lambda v: [1, 1, 2, 1, 1, 1, 1], r"row 2: episode_index leaves 1 here"),
        ("episode_index", lambda v: [1] * 6 + [2], r"has 6 rows of episode 1 .*, and the list of episodes says 7"),
        ("task_index", lambda v: [9] * len(v), r"has the task_index 9, which .*meta does not list"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_the_way_to_go_on(v21, key, change, said):
    recordings.edit_table(v21 / V21_ROWS, key, change)
    with pytest.raises(WhaleError, match=f"episode_000001.parquet.*{said}.*--leave-out=1$"):
        read(v21)
    assert [e.name for e in read(v21, leave_out={"1"})] == ["0", "2"]


def test_rows_of_later_episodes_are_numbered_within_their_file(tmp_path):
    root = recordings.write_v30(tmp_path, LENGTHS)
    recordings.edit_table(root / "data/chunk-000/file-000.parquet", "timestamp", lambda v: [*v[:12], 9.0, *v[13:]])
    with pytest.raises(
        WhaleError, match=r"file-000.parquet, row 12: timestamp 9 s is .*--leave-out=1|row 13: timestamp"
    ):
        read(root)


def test_a_video_of_other_length_than_its_rows_is_named(v21):
    video = next(v21.rglob(V21_VIDEO))
    recordings.write_video(video, [(1, 6)])
    with pytest.raises(WhaleError, match=r"episode_000001.mp4 has 6 frames of episode 1, and its table 7 rows"):
        read(v21)


def test_a_segment_listed_longer_than_its_rows_is_noted_and_a_file_that_ends_early_is_named(tmp_path):
    root = recordings.write_v30(tmp_path, LENGTHS)
    path, key = root / "meta/episodes/chunk-000/file-000.parquet", f"videos/{recordings.CAMERA}/to_timestamp"
    recordings.edit_table(path, key, lambda v: [v[0] + 0.1, v[1] + 0.2, v[2]])
    episodes = read(root)
    assert [bool(e.notes) for e in episodes] == [True, True, False]
    for e, episode in enumerate(episodes):
        recordings.assert_frames(episode.frames(np.arange(LENGTHS[e]), 24), e, np.arange(LENGTHS[e]))
    recordings.edit_table(path, key, lambda v: [v[0] - 0.1, v[1] - 0.2, v[2]])
    recordings.write_video(next((root / "videos").rglob("file-000.mp4")), [(0, 9), (1, 4)])
    with pytest.raises(WhaleError, match=r"holds 13 frames and ends before episode 1 does \(0.9 to 1.6 s\)"):
        read(root)


def test_a_video_that_is_missing_cut_short_or_of_an_unknown_codec_is_named_with_what_to_do(v21):
    video = next(v21.rglob(V21_VIDEO))
    whole = video.read_bytes()
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WhaleError, match=r"episode_000001.mp4 is cut short or no video .*--leave-out=1$"):
        read(v21)
    video.write_bytes(whole.replace(b"avc1", b"zzzz"))
    with pytest.raises(WhaleError, match=r"encoded with 'zzzz', .*: ffmpeg -i episode_000001.mp4 -c:v libx264 out.mp4"):
        read(v21)
    video.unlink()
    with pytest.raises(WhaleError, match=r"The video .*episode_000001.mp4 is missing"):
        read(v21)


def test_a_video_whose_pictures_are_cut_off_is_said(v21, tmp_path):
    """Its index is at the front here, as LeRobot's own are, so that only its pictures tell."""
    import av

    video = next(v21.rglob(V21_VIDEO))
    with av.open(str(video)) as source, av.open(str(tmp_path / "f.mp4"), "w", options={"movflags": "faststart"}) as to:
        stream = to.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.dts is not None:
                packet.stream = stream
                to.mux(packet)
    whole = (tmp_path / "f.mp4").read_bytes()
    video.write_bytes(whole[: int(len(whole) * 0.9)])
    with pytest.raises(WhaleError, match=r"episode_000001.mp4 is cut short: [1-6] of its 7 frames are there"):
        read(v21)


def test_frames_at_other_times_than_the_rows_are_not_taken_for_them(tmp_path):
    recordings.write_video(tmp_path / "slow.mp4", [(0, 5)], fps=5)
    with (
        Video(tmp_path / "slow.mp4") as video,
        pytest.raises(WhaleError, match=r"no frame at 0.1000 s; the next is at 0.2"),
    ):
        video.read(np.arange(5) / 10, 24, 0.05)
    with (
        Video(tmp_path / "slow.mp4") as video,
        pytest.raises(WhaleError, match=r"ends at 0.8000 s, and a frame at 1.0000"),
    ):
        video.read(np.arange(6) / 5, 24, 0.05)


def test_a_camera_must_be_named_where_there_are_several_and_must_exist(tmp_path):
    cameras = ("observation.images.front", "observation.images.wrist")
    root = recordings.write_v21(tmp_path, (4,), cameras)
    with pytest.raises(WhaleError, match=r"has 2 cameras \(.*front, .*wrist\).*--camera=observation.images.front"):
        LeRobot(root).choose_camera("")
    with pytest.raises(WhaleError, match=r"no camera in .* named 'observation.images.wirst'; did you mean .*wrist"):
        LeRobot(root).choose_camera("observation.images.wirst")
    (episode,) = read(root, LeRobot(root).choose_camera("observation.images.wrist"))
    recordings.assert_frames(episode.frames(np.arange(4), 24), 0, np.arange(4))


def test_depth_is_no_camera(v21):
    edit_info(
        v21, lambda i: i["features"].update(depth=i["features"][recordings.CAMERA] | {"info": {"is_depth_map": True}})
    )
    assert LeRobot(v21).choose_camera("") == recordings.CAMERA


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda i: i.update(codebase_version="v1.6"), "says codebase_version 'v1.6'; versions 2 and 3 can be read"),
        (lambda i: i.pop("fps"), "info.json lacks fps"),
        (lambda i: i.update(total_episodes=4), "says 4 episodes, and .* lists 3"),
        (lambda i: i.update(fps="fast"), "has the fps 'fast'; write the recording's frames per second"),
        (lambda i: i["features"]["action"].pop("shape"), "says no dtype or no shape of the feature action"),
        (lambda i: i.update(data_path="data/{chunk_index}.parquet"), "the data_path .* which is no pattern of version"),
        (lambda i: i.pop("video_path"), "the video_path None, which is no pattern of version v2.1"),
    ],
)
def test_metadata_that_cannot_be_right_is_named(v21, change, said):
    edit_info(v21, change)
    with pytest.raises(WhaleError, match=said):
        LeRobot(v21)


def test_a_missing_table_and_broken_lines_are_named(v21):
    (v21 / V21_ROWS).unlink()
    with pytest.raises(WhaleError, match=r"The table .*episode_000001.parquet is missing.*--leave-out=1"):
        read(v21)
    (v21 / V21_ROWS).write_bytes(b"no parquet")
    with pytest.raises(WhaleError, match=r"episode_000001.parquet cannot be read"):
        read(v21)
    (v21 / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 9}\n{"episode_')
    with pytest.raises(WhaleError, match=r"episodes.jsonl, line 2 is not valid JSON"):
        LeRobot(v21)


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "has a line of episode 1 without data/file_index"), (0.5, "data/file_index 0.5, where a number belongs")],
)
def test_a_list_of_episodes_without_a_place_is_named(tmp_path, value, said):
    root = recordings.write_v30(tmp_path, LENGTHS)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    lines = pq.read_table(path).to_pylist()
    for line in lines:
        line["data/file_index"] = value if line["episode_index"] == 1 else float(line["data/file_index"])
    recordings.write_table(path, pa.Table.from_pylist(lines))
    with pytest.raises(WhaleError, match=said):
        LeRobot(root)


def test_a_line_of_episodes_or_tasks_without_what_belongs_there_is_named(v21):
    (v21 / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 9}\n{"episode_index": 1}')
    with pytest.raises(WhaleError, match="episodes.jsonl has a line of episode 1 without length"):
        LeRobot(v21)
    (v21 / "meta/tasks.jsonl").write_text('{"task": "reach"}')
    with pytest.raises(WhaleError, match="tasks.jsonl has a line without task_index"):
        LeRobot(v21)


def test_a_picture_that_does_not_decode_is_named_with_its_frame(tmp_path):
    root = images(tmp_path)
    path = root / V21_ROWS
    rows = pq.read_table(path)
    cells = [*rows[recordings.CAMERA].to_pylist()]
    cells[3] = {"bytes": b"no picture", "path": "3.png"}
    place = rows.column_names.index(recordings.CAMERA)
    recordings.write_table(path, rows.set_column(place, recordings.CAMERA, pa.array(cells)))
    with pytest.raises(WhaleError, match=r"front in .*episode_000001.parquet, frame 3 of episode 1 is no picture"):
        read(root)[1].frames(np.arange(7), 24)


def test_a_missing_pyarrow_is_said_with_the_command_that_installs_it(v21, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(WhaleError, match=r"WHALE_EXTRAS=metaworld,viz,dev,lerobot bash launch/setup.sh"):
        LeRobot(v21)
