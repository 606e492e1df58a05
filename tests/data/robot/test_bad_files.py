"""Files that are no recordings, or not yet: each is refused with a sentence that names it, within seconds, or read."""

import io
import json
import os
import signal
import struct
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.robot.importing import import_data
from whale_jax.data.store.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings

ROBOT = "robot: arm\nrate_hz: 10\ndimensions:\n  - {name: x, from: 0, kind: delta, unit: m}\n"


@pytest.fixture(autouse=True)
def within_seconds():
    """Nothing here may wait for a file that never ends."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def imported(root: Path, robot: str = ROBOT, **options):
    yaml = root.with_name(f"{root.name}.yaml")
    yaml.write_text(robot)
    return import_data(root, root.with_name(f"{root.name}-store"), yaml, progress=False, **{"image_size": 16} | options)


def folder(root: Path, pictures: bool = False) -> Path:
    return recordings.write_folder(root, {"a": 6, "b": 6}, pictures)


def png(width: int, height: int) -> bytes:
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def replaced(name: str, make):
    def change(root: Path) -> None:
        (root / name).unlink()
        make(root / name)

    return change


def without_frames(path: Path) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", 10)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        output.start_encoding()


def endless(path: Path) -> None:
    path.write_text("timestamp,x\n" + "".join(f"{i / 10},{i}\n" for i in range(300_000)))


def table(times, **columns):
    rows = zip(times, *columns.values(), strict=True)
    return "\n".join([",".join(["timestamp", *columns]), *(",".join(map(str, row)) for row in rows)])


FILES = {
    "a pipe for a table": (replaced("a.csv", os.mkfifo), "a.csv cannot be read as text: it is a pipe or a device"),
    "a pipe for a video": (replaced("a.mp4", os.mkfifo), "a.mp4 is cut short or no video .it is a pipe or a device"),
    "a device for a table": (replaced("a.csv", lambda p: p.symlink_to("/dev/zero")), "it is a pipe or a device"),
    "a link to itself": (replaced("a.csv", lambda p: p.symlink_to("a.csv")), "a.csv cannot be read as text: Too many"),
    "a directory for a table": (replaced("a.csv", Path.mkdir), "a.csv cannot be read as text: Is a directory"),
    "a table that goes on": (replaced("a.csv", endless), r"a.mp4 has 6 frames, and .*a.csv 1006 rows and more"),
    "another encoding": (
        replaced("a.csv", lambda p: p.write_text("timestamp,x\n0,1\n", encoding="utf-16")),
        "a.csv cannot be read as text: 'utf-8' codec",
    ),
    "no rows": (replaced("a.csv", lambda p: p.write_text("timestamp,x\n")), "a.csv has no row after its header"),
    "no frames": (replaced("a.mp4", without_frames), "a.mp4 (holds no video|shows no frame)"),
    "milliseconds": (
        replaced("a.csv", lambda p: p.write_text(table(range(0, 600, 100), x=range(6)))),
        "a.csv: timestamps are 100 apart, which look like milliseconds; write seconds",
    ),
    "nanoseconds": (
        replaced("a.csv", lambda p: p.write_text(table(range(0, 6 * 10**8, 10**8), x=range(6)))),
        "which look like nanoseconds; write seconds",
    ),
    "a reward that is no number": (
        replaced("a.csv", lambda p: p.write_text(table(np.arange(6) / 10, x=range(6), reward=[0, 0, "nan", 0, 0, 1]))),
        "a.csv has a value that is not a number at row 4: reward",
    ),
    "a success that is no number": (
        replaced("a.csv", lambda p: p.write_text(table(np.arange(6) / 10, x=range(6), success=[0, "nan", 0, 0, 0, 1]))),
        "a.csv has a value that is not a number at row 3: success",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_recording_is_named_and_the_rest_can_be_imported(name, tmp_path):
    change, says = FILES[name]
    root = folder(tmp_path / "films")
    change(root)
    with pytest.raises(WhaleError, match=f"{says}.*--leave-out=a$"):
        imported(root)
    store, _ = imported(root, leave_out=["a"])
    recordings.assert_frames(store.read(0).frames, 1, np.arange(6))


def test_a_recording_that_is_as_slow_as_its_robot_is_said_to_be_is_taken(tmp_path):
    root = folder(tmp_path / "films")
    for name in ("a", "b"):
        (root / f"{name}.csv").write_text(table(range(0, 600, 100), x=range(6)))
    _, found = imported(root, ROBOT.replace("rate_hz: 10", "rate_hz: 0.01"))
    assert found.rate_hz == 0.01


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "it is a pipe or a device"),
        (lambda path: path.write_bytes(png(60000, 60000)), "exceeds limit"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    ],
)
def test_a_picture_that_is_none_is_named(make, says, tmp_path):
    root = folder(tmp_path / "stills", pictures=True)
    replaced("a/000003.png", make)(root)
    with pytest.raises(WhaleError, match=f"000003.png is no picture that decodes .*{says}.*--leave-out=a$"):
        imported(root)


def test_pictures_beside_their_table_are_told_where_they_belong(tmp_path):
    root = folder(tmp_path / "stills", pictures=True)
    (root / "a").rename(root / "elsewhere")
    for path in (root / "elsewhere").iterdir():
        path.rename(root / path.name)
    with pytest.raises(WhaleError, match=r"the pictures in .*stills itself belong into .*stills/a\. "):
        imported(root)


def test_a_table_that_grows_while_it_is_read_is_refused(tmp_path, monkeypatch):
    root = folder(tmp_path / "films")
    from whale_jax.data.robot import folder as reader

    read = reader._read_csv

    def slow(path, *more):
        found = read(path, *more)
        if path.stem == "b":  # as a recorder does that has written b's first rows
            with path.open("a") as file:
                file.write("\n")
        return found

    monkeypatch.setattr(reader, "_read_csv", slow)
    with pytest.raises(WhaleError, match="b.csv was written to while it was read; import it once .*--leave-out=b$"):
        imported(root)
    monkeypatch.undo()
    os.utime(root / "a.csv", (2**32, 2**32))  # as a robot's clock may say
    assert len(imported(root)[0]) == 2


def test_frames_that_do_not_fit_into_memory_are_refused_before_any_is_decoded(tmp_path):
    with pytest.raises(WhaleError, match=r"Episode a has 6 frames, which take 67.* GiB .*give a smaller --image-size"):
        imported(folder(tmp_path / "films"), image_size=200_000)


@pytest.mark.parametrize("make", [folder, lambda root: recordings.write_v21(root, (6, 6))])
def test_a_source_is_not_written_into(make, tmp_path):
    root = make(tmp_path / "mine")
    yaml = tmp_path / "robot.yaml"
    yaml.write_text(ROBOT)
    (tmp_path / "link").symlink_to(root)
    for target in (root, tmp_path / "link"):
        with pytest.raises(WhaleError, match="is the source itself; give --to another directory"):
            import_data(root, target, yaml)
    assert not (root / "manifest.json").exists()


def test_a_name_that_is_no_text_can_be_left_out_as_the_message_says(tmp_path, whale):
    root = folder(tmp_path / "films")
    for kind in ("mp4", "csv"):
        (root / f"a.{kind}").rename(Path(os.fsdecode(os.fsencode(root) + b"/\xff'1." + kind.encode())))
    broken = next(path for path in root.glob("*.csv") if path.name != "b.csv")
    broken.write_text("timestamp,x\n")
    with pytest.raises(WhaleError, match=r"--leave-out=\$'\\xff\\'1'$"):
        imported(root)
    assert len(imported(root, leave_out=[broken.stem])[0]) == 1


def test_ten_thousand_episodes_are_named_at_once():
    from whale_jax.data.robot.importing import slugs_of

    slugs = slugs_of(f"task {i % 5000} of {i}" for i in range(20_000))
    assert len(set(slugs.values())) == 20_000
    assert list(slugs_of(["Push", "push!", "pull", "PUSH"]).values()) == ["push", "push--2", "pull", "push--3"]


INFO = {
    "no fps": ({"fps": None}, "has the fps None"),
    "endless fps": ({"fps": float("inf")}, "has the fps inf"),
    "chunks in words": ({"chunks_size": "many"}, "has the chunks_size 'many'"),
    "features in a list": ({"features": []}, "has features that are no object"),
    "a feature in words": ({"features": {"action": "x"}}, "no shape of the feature action"),
    "a shape in words": (
        {"features": {"action": {"dtype": "float32", "shape": "7"}}},
        "no shape of the feature action",
    ),
    "half a pattern": (
        {"data_path": "data/{episode_index"},
        "the data_path 'data/.episode_index', which is no pattern",
    ),
}


@pytest.mark.parametrize("name", INFO)
def test_a_description_of_another_kind_is_said(name, tmp_path):
    change, says = INFO[name]
    root = recordings.write_v21(tmp_path / "set", (6, 6))
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WhaleError, match=f"meta/info.json.*{says}"):
        imported(root)


LINES = {
    "another encoding": ("tasks.jsonl", b'{"task_index": 0, "task": "gr\xfcn"}', "is not UTF-8"),
    "lists without an end": ("tasks.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
    "a number alone": ("episodes.jsonl", b"3", "has a line without episode_index"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_list_of_another_kind_is_said(name, tmp_path):
    file, text, says = LINES[name]
    root = recordings.write_v21(tmp_path / "set", (6, 6))
    (root / "meta" / file).write_bytes(text)
    with pytest.raises(WhaleError, match=f"meta/{file}.*{says}"):
        imported(root)


@pytest.mark.parametrize("file", ["meta/tasks.parquet", "meta/episodes/chunk-000/file-000.parquet"])
def test_a_table_of_the_description_that_is_empty_is_said(file, tmp_path):
    root = recordings.write_v30(tmp_path / "set", (6, 6))
    (root / file).write_bytes(b"")
    with pytest.raises(WhaleError, match=f"{file} cannot be read: it is empty; copy it anew"):
        imported(root)
    recordings.write_v30(root, (6, 6))
    recordings.write_table(root / file, pq.read_table(root / file).slice(0, 0))
    with pytest.raises(WhaleError, match=r"lists no episodes|which .*/meta does not list"):
        imported(root)


def column(key: str, values: list):
    def change(rows: pa.Table) -> pa.Table:
        return rows.set_column(rows.column_names.index(key), key, pa.array(values))

    return change


TABLES = {
    "a task without a number": (column("task_index", [None] * 6), "has the task_index nan, which .* does not list"),
    "rewards in words": (column("next.reward", ["x"] * 6), "000000.parquet: next.reward is a column of string"),
    "two rewards": (column("next.reward", [[1.0, 2.0]] * 6), "000000.parquet: next.reward has 2 numbers in a row"),
    "dates for times": (column("timestamp", ["today"] * 6), "000000.parquet: timestamp is a column of string"),
    "a column twice": (lambda rows: rows.append_column("action", rows["action"]), "has the column 'action' twice"),
    "no rows": (lambda rows: rows.slice(0, 0), "000000.parquet has no row of episode 0"),
    "deep lists": (
        column("action", [[[[[float(i)]]], [[[0.0], [1.0]]]] for i in range(6)]),
        "action has rows of different widths",
    ),
    "objects": (column("action", [{"x": {"y": [1.0]}}] * 6), "action is a column of struct"),
    "no pictures": (lambda rows: rows.drop_columns([recordings.CAMERA]), "has no pictures of observation.images.front"),
    "an empty picture": (column(recordings.CAMERA, [None] * 6), "frame 0 of episode 0 is None and no picture"),
    "paths to nothing": (column(recordings.CAMERA, ["no.png"] * 6), "frame 0 .* is no picture that decodes .*no.png"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_another_kind_is_named_and_the_rest_can_be_imported(name, tmp_path):
    change, says = TABLES[name]
    root = recordings.write_v21(tmp_path / "set", (6, 6), dtype="image")
    path = root / "data/chunk-000/episode_000000.parquet"
    recordings.write_table(path, change(pq.read_table(path)))
    with pytest.raises(WhaleError, match=f"{says}.*--leave-out=0$"):
        imported(root)
    store, _ = imported(root, leave_out=["0"])
    recordings.assert_frames(store.read(0).frames, 1, np.arange(6))


def test_deep_lists_are_read_in_their_order(tmp_path):
    root = recordings.write_v21(tmp_path / "set", (6,))
    path = root / "data/chunk-000/episode_000000.parquet"
    deep = [[[[[float(10 * i + j) for j in range(7)]]]] for i in range(6)]
    recordings.write_table(path, column("action", deep)(pq.read_table(path)))
    store, _ = imported(root, valid=0.0)
    assert store.read(0).actions[:, 0].tolist() == [0, 10, 20, 30, 40]


def test_a_text_may_hold_marks_that_end_a_line_and_a_description_a_mark_of_its_encoding(tmp_path, capsys):
    root = recordings.write_v21(tmp_path / "set", (6, 6))
    texts = ["push\u2028it\x85 \x1b[31m", 'say "hi"\nthen go']
    lines = [json.dumps({"task_index": i, "task": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    (root / "meta/tasks.jsonl").write_text("\n".join(lines))
    info = root / "meta/info.json"
    info.write_text(info.read_text(), encoding="utf-8-sig")
    store, found = imported(root, valid=0.0)
    assert [store.read(i).metadata["instruction"] for i in range(2)] == texts
    from whale_jax.data.robot.findings import to_text

    shown = to_text(found, "store")
    assert r"task      push\u2028it\x85 \x1b[31m (1)" in shown and r'say "hi"\nthen go (1)' in shown
    assert len(open_store(store.root)) == 2 and io.StringIO(shown).read().count("task  ") == 2
