"""Recording: complete, resumable after a real kill, and never half of anything."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.storage import MANIFEST
from whale_jax.data.store.store import open_store

pytest.importorskip("metaworld")

from whale_jax.data.metaworld.record import episode_seed, record

SETTINGS = {"tasks": ["reach", "drawer-close"], "episodes": {"train": 1, "test": 1}}
SMALL = {"image_size": 16, "steps": 20, "seed": 4, "workers": 2, "progress": False}

_SCRIPT = """
import sys
from whale_jax.data.metaworld.record import record
from whale_jax.base.errors import WhaleError
if __name__ == "__main__":
    try:
        record(sys.argv[1], tasks=["reach", "drawer-close"], episodes={"train": 1, "test": 1},
               image_size=16, steps=20, seed=4, workers=2)
    except WhaleError as error:
        sys.exit(f"WhaleError: {error}")
"""


def _listen() -> None:
    """A job that a shell put in the background ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted recording."""
    root = tmp_path_factory.mktemp("reference")
    return record(root, **SETTINGS, **SMALL)


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def start(tmp_path):
    """Starts a recording in a process of its own and waits until some episodes are there."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT)
    started = []

    def run(root: Path, wait_for: int):
        command = [sys.executable, str(script), str(root)]
        env = {**os.environ, "PYTHONPATH": os.getcwd()}
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=_listen)
        started.append(process)
        deadline = time.monotonic() + 60
        while len(list(root.glob("episodes/**/[!.]*.npz"))) < wait_for:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.01)
        return process, psutil.Process(process.pid).children(recursive=True)

    yield run
    for process in started:
        process.kill()
        process.wait()


def _gone(processes, seconds: float = 15) -> bool:
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def test_a_recording_holds_what_was_asked(reference):
    assert len(reference) == 2 * (6 + 3) and reference.num_frames == 18 * 21
    assert len(reference.select(split="train")) == 12
    assert reference.select(split="test").names("policy") == [
        "cross-environment-c",
        "expert-noise-0.5",
        "expert-or-random",
    ]
    assert len({r["seed"] for r in reference.records}) == 18
    episode = reference.read(0)
    assert episode.metadata["split"] == "test" and episode.metadata["camera"] == "corner"
    assert set(reference.info["versions"]) == {"metaworld", "mujoco", "numpy", "gymnasium"}
    assert not [f for f in _files(reference.root) if f.endswith(".tmp")]


def test_any_number_of_workers_gives_the_same_bytes(reference, tmp_path):
    record(tmp_path / "one", **SETTINGS, **{**SMALL, "workers": 1})
    assert _files(tmp_path / "one") == _files(reference.root)


def test_kill_nine_then_the_same_command_gives_the_same_bytes(reference, start, tmp_path):
    root = tmp_path / "killed"
    root.mkdir()
    for episodes in (1, 4, 9):
        process, children = start(root, wait_for=episodes)
        process.kill()
        process.wait()
        assert _gone(children)
    with pytest.raises(WhaleError, match="half-written"):
        open_store(root)
    before = {f: (root / f).stat().st_mtime_ns for f in _files(root) if not f.endswith(".tmp")}
    record(root, **SETTINGS, **SMALL)
    assert _files(root) == _files(reference.root)
    assert all((root / f).stat().st_mtime_ns == t for f, t in before.items())


def test_a_worker_that_dies_is_named_and_costs_nothing_else(reference, start, tmp_path):
    root = tmp_path / "crashed"
    root.mkdir()
    process, children = start(root, wait_for=3)
    worker = next(c for c in children if "spawn_main" in " ".join(c.cmdline()))
    worker.kill()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in stderr
    assert "The process recording episodes/" in stderr and "exit code -9" in stderr
    assert _gone(children)
    assert not [f for f in _files(root) if f.endswith(".tmp")]
    record(root, **SETTINGS, **SMALL)
    assert _files(root) == _files(reference.root)


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
def test_a_signal_stops_at_once_and_leaves_no_process_and_no_partial_file(reference, start, tmp_path, number, to_all):
    root = tmp_path / "interrupted"
    root.mkdir()
    process, children = start(root, wait_for=2)
    for each in [process, *children] if to_all else [process]:
        os.kill(each.pid, number)
    process.communicate(timeout=60)
    assert process.returncode != 0 and _gone(children)
    assert not [f for f in _files(root) if f.endswith(".tmp")] and len(_files(root)) < len(_files(reference.root))
    record(root, **SETTINGS, **SMALL)
    assert _files(root) == _files(reference.root)


def test_two_recordings_into_one_directory(start, tmp_path):
    root = tmp_path / "shared"
    root.mkdir()
    start(root, wait_for=1)
    with pytest.raises(WhaleError, match="Another process is writing into"):
        record(root, **SETTINGS, **SMALL)


def test_what_is_there_is_kept_and_more_can_be_added(reference, tmp_path):
    root = tmp_path / "store"
    first = record(root, **{**SMALL, "tasks": ["reach"], "episodes": {"valid": 1}}, policies=["random"])
    assert [(r["split"], r["policy"]) for r in first.records] == [("valid", "random")]
    file = root / first.records[0]["file"]
    stamp = file.stat().st_mtime_ns
    second = record(root, **{**SMALL, "tasks": ["reach"], "episodes": {"valid": 2}}, policies=["random"])
    assert len(second) == 2 and file.stat().st_mtime_ns == stamp
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    record(root, **{**SMALL, "tasks": ["reach"], "episodes": {"valid": 1}}, policies=["random"])
    assert file.read_bytes() == whole


def test_near_misses_join_a_store_that_has_none(reference, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(reference.root, root)
    before = _files(root)
    missed = record(root, **SETTINGS, **SMALL, near_misses={"train": 2, "valid": 1})
    added = [r for r in missed.records if r["policy"] == "near-miss"]
    assert len(missed) == len(reference) + len(added)
    for task in SETTINGS["tasks"]:
        assert [r["split"] for r in added if r["task"] == task] == ["train", "train", "valid"]
    assert {r["policy"] for r in missed.held_out().records} == set(reference.held_out().names("policy"))
    after = _files(root)
    assert {f: after[f] for f in before if f != MANIFEST} == {f: before[f] for f in before if f != MANIFEST}
    again = record(tmp_path / "other", **SETTINGS, **{**SMALL, "workers": 1}, near_misses={"train": 2, "valid": 1})
    assert _files(again.root) == after


@pytest.mark.parametrize("other", [{"image_size": 32}, {"camera": "corner2"}, {"steps": 30}, {"seed": 5}])
def test_other_settings_are_refused_and_nothing_is_changed(reference, other):
    before = _files(reference.root)
    with pytest.raises(WhaleError, match="nothing was changed"):
        record(reference.root, **{**SETTINGS, **SMALL, **other})
    (manifest := reference.root / MANIFEST).unlink()
    with pytest.raises(WhaleError, match="nothing was changed"):
        record(reference.root, **{**SETTINGS, **SMALL, **other})
    manifest.write_bytes(before[MANIFEST])
    assert _files(reference.root) == before


def test_names_are_checked_before_anything_is_made(tmp_path):
    for wrong in (
        {"tasks": ["raech"]},
        {"camera": "corner9"},
        {"episodes": {"tset": 1}},
        {"near_misses": {"trian": 1}},
        {"policies": ["exprt"]},
    ):
        with pytest.raises(WhaleError, match="did you mean"):
            record(tmp_path / "new", **{**SETTINGS, **SMALL, **wrong})
    assert not (tmp_path / "new").exists()


def test_an_episode_keeps_its_seed_whatever_else_is_recorded():
    seeds = {
        episode_seed(s, split, task, policy, i)
        for s in (0, 1)
        for split in ("train", "test")
        for task in ("reach", "hammer")
        for policy in ("expert", "random")
        for i in range(20)
    }
    assert len(seeds) == 2 * 2 * 2 * 2 * 20 and all(0 <= seed < 2**31 for seed in seeds)
    assert episode_seed(0, "train", "reach", "expert", 0) == episode_seed(0, "train", "reach", "expert", 0)


def test_near_misses_are_never_among_unseen_policies(tmp_path):
    with pytest.raises(WhaleError, match="no split of near_misses named 'test'; valid names: train, valid"):
        record(tmp_path / "new", **SETTINGS, **SMALL, near_misses={"test": 1})


def test_policies_to_be_ranked_start_alike():
    starts = {episode_seed(0, "ranked", "reach", policy, 3) for policy in ("expert", "random")}
    assert len(starts) == 1 and episode_seed(0, "ranked", "reach", "random", 4) not in starts
