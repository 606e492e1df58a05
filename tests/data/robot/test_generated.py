"""Generated recordings, sound and faulty: every frame comes with its own action, or the import says where it does not.

Frames show their number as a colour and actions hold it, so that a frame beside another's action is seen.
"""

import csv
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.data.robot.importing import import_data

sys.path.insert(0, str(Path(__file__).parents[1]))
import recordings

CASES, GROUPS = 500, 10
STEP = 1 / recordings.HZ
ROBOT = "robot: arm\ndimensions:\n  - {name: x, from: %s, kind: delta, unit: m}\n"
Rng = np.random.Generator


def frame_numbers(frames: np.ndarray) -> np.ndarray:
    """The numbers that frames show."""
    return np.round(frames[..., 1].mean((1, 2)) / 12).astype(int)


def column(path: Path, key: str, change: Callable[[list], list], kind: pa.DataType | None = None) -> None:
    table = pq.read_table(path)
    place = table.column_names.index(key)
    values = pa.array(change(table[key].to_pylist()), kind or table[key].type)
    recordings.write_table(path, table.set_column(place, key, values))


def shifted(by: float, scale: float = 1.0):
    return lambda root, rng: [
        column(p, "timestamp", lambda v: [scale * t + by for t in v], pa.float64())
        for p in root.glob("data/*/*.parquet")
    ]


def jittered(root: Path, rng: Rng) -> None:
    for path in root.glob("data/*/*.parquet"):
        column(path, "timestamp", lambda v: [t + STEP * rng.uniform(-0.15, 0.15) for t in v])


def first_table(root: Path) -> Path:
    return sorted(root.glob("data/*/*.parquet"))[0]


def without_row(root: Path, rng: Rng, row: int) -> None:
    """Takes a row out of an episode, whose video keeps the frame."""
    path, rows = first_table(root), pq.read_table(first_table(root))
    kept = [i for i in range(len(rows)) if i != row]
    table = rows.take(kept)
    place = table.column_names.index("frame_index")
    recordings.write_table(path, table.set_column(place, "frame_index", pa.array(range(len(kept)))))
    lines = (root / "meta/episodes.jsonl").read_text().replace(f'"length": {len(rows)}', f'"length": {len(kept)}', 1)
    (root / "meta/episodes.jsonl").write_text(lines)


def film(root: Path, numbers: list[int]) -> None:
    """Makes the first video show these frames of its episode."""
    path = sorted(root.rglob("*.mp4"))[0]
    recordings.write_video(path, [(0, 1)])
    import av

    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", recordings.HZ, options={"g": "2", "crf": "10", "preset": "ultrafast"})
        stream.width = stream.height = recordings.SIDE
        stream.pix_fmt = "yuv420p"
        for i in numbers:
            shape = (recordings.SIDE, recordings.SIDE, 3)
            frame = av.VideoFrame.from_ndarray(np.full(shape, recordings.colour(0, i), np.uint8), "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def listed(change: Callable[[int, float, float, Rng], tuple[float, float]]):
    """Changes where episodes are listed in their videos."""

    def apply(root: Path, rng: Rng) -> None:
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        lines = pq.read_table(path).to_pylist()
        for i, line in enumerate(lines):
            keys = [f"videos/{recordings.CAMERA}/{key}_timestamp" for key in ("from", "to")]
            line |= dict(zip(keys, change(i, *(line[key] for key in keys), rng), strict=True))
        recordings.write_table(path, pa.Table.from_pylist(lines))

    return apply


def deleted(root: Path, rng: Rng) -> None:
    path = root / "meta/episodes.jsonl"
    if path.exists():
        lines = path.read_text().splitlines()
        path.write_text("\n".join(lines[:1] + lines[2:]))
    else:
        path = root / "meta/episodes/chunk-000/file-000.parquet"
        lines = pq.read_table(path).to_pylist()
        recordings.write_table(path, pa.Table.from_pylist(lines[:1] + lines[2:]))


def spoilt(change: Callable[[list], list], kind: pa.DataType | None = None):
    return lambda root, rng: column(first_table(root), "action", change, kind)


def jumping(root: Path, rng: Rng) -> None:
    column(first_table(root), "index", lambda v: [x * 3 for x in v])


LISTS = pa.list_(pa.float32())
LAST_NAN = spoilt(lambda v: [*v[:-1], [float("nan")] * 7], LISTS)
NO_VALUE = spoilt(lambda v: [None if i == 2 else x for i, x in enumerate(v)], LISTS)
RAGGED = spoilt(lambda v: [x[: 6 + (i % 2)] for i, x in enumerate(v)], LISTS)
HOLE = spoilt(lambda v: [[None, *x[1:]] if i == 1 else x for i, x in enumerate(v)], LISTS)
# Name of a change: the kinds of recording that it is made in, whether a person would call the result sound, the change.
LEROBOT = {
    "nothing": ("v21 v30", True, lambda root, rng: None),
    "times from one step": ("v21 v30", True, shifted(STEP)),
    "times of a clock": ("v21 v30", True, shifted(1.7e9)),
    "negative times": ("v21 v30", True, shifted(-3.04)),
    "jitter": ("v21 v30", True, jittered),
    "another rate": ("v21 v30", False, shifted(0.0, 1.1)),
    "milliseconds": ("v21 v30", False, shifted(0.0, 1000.0)),
    "one frame more at the end": ("v21", True, lambda root, rng: film(root, [*range(8)])),
    "a frame too few": ("v21", False, lambda root, rng: film(root, [0, 1, 3, 4, 5, 6])),
    "a row too few": ("v21", True, lambda root, rng: without_row(root, rng, int(rng.integers(1, 6)))),
    "the first row missing": ("v21", False, lambda root, rng: without_row(root, rng, 0)),
    "a list that drifts back": ("v30", True, listed(lambda i, a, b, rng: (a - 0.012 * i, b - 0.012 * i - 0.012))),
    "a list that drifts on": ("v30", True, listed(lambda i, a, b, rng: (a + 0.012 * i, b + 0.012 * i + 0.012))),
    "one listed early": ("v30", True, listed(lambda i, a, b, rng: (a - STEP * (i == 1), b - STEP * (i == 1)))),
    "one listed longer": ("v30", True, listed(lambda i, a, b, rng: (a, b + STEP * (i == 0)))),
    "all listed late": ("v30", True, listed(lambda i, a, b, rng: (a + STEP, b + STEP))),
    "an episode deleted": ("v21 v30", True, deleted),
    "the last action not a number": ("v21", True, LAST_NAN),
    "an action without a value": ("v21 v30", False, NO_VALUE),
    "actions of two widths": ("v21 v30", False, RAGGED),
    "a number missing": ("v21 v30", False, HOLE),
    "an index that jumps": (
        "v21",
        True,
        lambda root, rng: column(first_table(root), "index", lambda v: [x * 3 for x in v]),
    ),
}


def lerobot(root: Path, kind: str, change: str, rng: Rng) -> None:
    lengths = (7, *map(int, rng.integers(5, 10, 3)))
    write = recordings.write_v21 if kind == "v21" else recordings.write_v30
    write(root, lengths, **({"per_file": int(rng.integers(2, 5))} if kind == "v30" else {}))
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        index = table["frame_index"].to_pylist()
        column(path, "action", lambda v, index=index: [[i / 1000, *x[1:]] for i, x in zip(index, v, strict=True)])
    LEROBOT[change][2](root, rng)


PADDED, PLAIN, PREFIXED = "{:06d}.png", "{}.png", "frame_{}.PNG"
NAMES = {
    "padded": PADDED,
    "plain": PLAIN,
    "prefixed": PREFIXED,
    "past their width": "{:01d}.jpg",
    "seconds": "t{:.2f}.png",
}
TABLES = {
    "nothing": (True, lambda header, rows, rng: (header, rows)),
    "row numbers in front": (True, lambda header, rows, rng: (["", *header], [[i, *r] for i, r in enumerate(rows)])),
    "pandas' row numbers": (True, lambda h, rows, rng: (["Unnamed: 0", *h], [[i, *r] for i, r in enumerate(rows)])),
    "another clock": (True, lambda h, rows, rng: (["wall_time", *h], [[1.7e9 + i, *r] for i, r in enumerate(rows)])),
    "a counter of frames": (True, lambda h, rows, rng: ([*h, "frame_index"], [[*r, i] for i, r in enumerate(rows)])),
    "times of a clock": (True, lambda h, rows, rng: (h, [[1.7e9 + r[0], *r[1:]] for r in rows])),
    "an empty cell": (False, lambda h, rows, rng: (h, [*rows[:2], ["0.2", "", *rows[2][2:]], *rows[3:]])),
    "a row too short": (False, lambda h, rows, rng: (h, [*rows[:2], rows[2][:-1], *rows[3:]])),
    "no header": (False, lambda h, rows, rng: (rows[0], rows[1:])),
    "a name twice": (False, lambda h, rows, rng: ([*h, "x"], [[*r, 0] for r in rows])),
    "two rows too few": (False, lambda h, rows, rng: (h, rows[:-2])),
    "one row fewer": (True, lambda h, rows, rng: (h, rows[:-1])),
}


def folder(root: Path, kind: str, change: str, rng: Rng) -> None:
    root.mkdir()
    for e in range(3):
        count = int(rng.integers(11, 14))
        if kind == "film":
            recordings.write_video(root / f"ep{e}.mp4", [(0, count)])
        else:
            (root / f"ep{e}").mkdir()
            for i in range(count):
                name = NAMES[kind].format(i / 4 if kind == "seconds" else i)
                Image.new("RGB", (16, 16), recordings.colour(0, i)).save(root / f"ep{e}" / name)
            (root / f"ep{e}" / f"._{PLAIN.format(0)}").write_bytes(b"\0" * 20)
        (root / f"._ep{e}.csv").write_bytes(b"\0\5\x16\7")
        rows = [[i / recordings.HZ, i / 1000, 0.5] for i in range(count)]
        header, rows = TABLES[change][1](["timestamp", "x", "y"], rows, rng)
        with (root / f"ep{e}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def case(number: int) -> tuple[Callable, str, str, bool]:
    """The kind of recording and the change of a case, and whether a person would call the result sound."""
    rng = np.random.default_rng([7, number])
    if rng.random() < 0.6:
        kind = str(rng.choice(["v21", "v30"]))
        change = str(rng.choice([name for name, row in LEROBOT.items() if kind in row[0]]))
        return lerobot, kind, change, LEROBOT[change][1]
    kind, change = str(rng.choice([*NAMES, "film"])), str(rng.choice([*TABLES]))
    return folder, kind, change, TABLES[change][0]


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_frame_has_its_own_action_or_the_import_says_where_not(tmp_path, group):
    for number in range(group, CASES, GROUPS):
        make, kind, change, sound = case(number)
        rng, root = np.random.default_rng(number), tmp_path / f"{number}"
        make(root, kind, change, rng)
        robot = tmp_path / f"{number}.yaml"
        robot.write_text(ROBOT % (0 if rng.random() < 0.5 else "x"))
        what = (number, make.__name__, kind, change)
        try:
            store, _ = import_data(root, tmp_path / f"{number}.store", robot, progress=False, valid=0, image_size=16)
        except WhaleError as error:
            assert not sound, (what, str(error))
            assert "\n" not in str(error) and str(root) in str(error), (what, str(error))
            continue
        for episode in map(store.read, range(len(store))):
            actions = np.round(episode.actions[:, 0] * 1000).astype(int)
            assert (frame_numbers(episode.frames)[:-1] == actions).all() and (np.diff(actions) > 0).all(), what


def test_most_generated_recordings_are_sound_and_every_change_occurs():
    kinds = Counter(case(number)[2:] for number in range(CASES))
    assert sum(count for (_, sound), count in kinds.items() if sound) > 0.5 * CASES
    assert {change for change, _ in kinds} == LEROBOT.keys() | TABLES.keys()
