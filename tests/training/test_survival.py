"""What stops a run, and what it finds when it comes back: signals, broken checkpoints, other devices, slow data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract import batch as batches
from whale_jax.data.store import activity
from whale_jax.data.store.batches import LocalSource
from whale_jax.data.store.store import open_store
from whale_jax.jobs.pretrain import train_stage
from whale_jax.training import checkpoint, sharding
from whale_jax.training.feed import Feed
from whale_jax.training.profile import parse_window

LAST = 10


def tokenizer_run(trained, target, *steps):
    """A copy of the tokenizer's checkpoints at these steps, and of its history."""
    source, stage = trained[0], target / "checkpoints" / "tokenizer"
    for step in steps:
        shutil.copytree(source / "checkpoints" / "tokenizer" / str(step), stage / str(step))
    (target / "history").mkdir()
    shutil.copy(source / "history" / "tokenizer.jsonl", target / "history")
    return stage


def assert_same_tokenizer(trained, workdir):
    for item in ("params", "optimizer"):
        trees = [tiny.read_tree(w / "checkpoints" / "tokenizer" / str(LAST) / item) for w in (trained[0], workdir)]
        tiny.assert_equal_trees(*trees)
    assert tiny.history_of(trained[0], "tokenizer") == tiny.history_of(workdir, "tokenizer")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_the_status_says_resume(number, trained, store, tmp_path, whale):
    run = tiny.Training(store, tmp_path / "run", "--until=tokenizer", "--config.stages.tokenizer.save_every=100")
    run.when(lambda: run.lines("tokenizer") >= 3, number=number)
    assert run.process.returncode == 75, run.said()
    assert f"{number.name}: saving, then stopping" in run.said()
    (step,) = checkpoint.steps_in(run.workdir / "checkpoints" / "tokenizer")
    assert 3 <= step < LAST and f"stopped at step {step} of {LAST}, which is saved" in run.said()
    assert f"stopped ({number.name}); run the same command again" in run.said()
    done = whale(*tiny.train_arguments(store, run.workdir, "--until=tokenizer"))
    assert done.status == 0, done.err
    assert_same_tokenizer(trained, run.workdir)


def test_a_second_signal_ends_it_at_once_but_not_an_echo_of_the_first():
    program = (
        "import time\nfrom whale_jax.training import interrupt\n"
        "with interrupt.handled(), interrupt.deferred():\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program], **pipes)
    assert process.stdout.readline() == "ready\n"
    for pause in (0.05, 0.6):
        process.send_signal(signal.SIGTERM)
        time.sleep(pause)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and said.count("saving, then stopping") == 1


def test_every_truncated_or_missing_file_is_detected_or_not_needed(trained, tmp_path):
    stage = trained[0] / "checkpoints" / "tokenizer"
    wanted = jax.tree.leaves(checkpoint.read_item(stage, LAST, "params"))
    files = sorted(p for p in (stage / str(LAST) / "params").rglob("*") if p.is_file())
    detected = 0
    for number, file in enumerate(files):
        for keep in (None, file.stat().st_size // 2):
            copy = tmp_path / f"{number}-{keep}"
            shutil.copytree(stage / str(LAST), copy / str(LAST))
            broken = copy / file.relative_to(stage)
            broken.unlink() if keep is None else os.truncate(broken, keep)
            try:
                read = jax.tree.leaves(checkpoint.read_item(copy, LAST, "params"))
            except checkpoint.BrokenCheckpoint:
                detected += 1
                continue
            assert all(a.tobytes() == b.tobytes() for a, b in zip(read, wanted, strict=True)), broken
    assert detected >= len(files) // 2


def test_a_broken_checkpoint_is_passed_over_said_so_and_moved_aside(trained, store, tmp_path, whale):
    stage = tokenizer_run(trained, tmp_path / "run", 8, LAST)
    largest = max((stage / str(LAST) / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    os.truncate(largest, largest.stat().st_size // 2)
    broken = tiny.files_in(stage / str(LAST))
    done = whale(*tiny.train_arguments(store, tmp_path / "run", "--until=tokenizer"))
    assert done.status == 0, done.err
    assert f"warning: step {LAST} of {stage} is passed over for step 8" in done.err
    assert f"resuming at step 8 of {LAST}" in done.err
    assert tiny.files_in(tmp_path / "run" / "checkpoints" / "unreadable" / f"tokenizer-{LAST}") == broken
    assert_same_tokenizer(trained, tmp_path / "run")


def test_where_no_checkpoint_can_be_read_nothing_is_trained_or_moved(trained, store, tmp_path, whale):
    stage = tokenizer_run(trained, tmp_path / "run", 8, LAST)
    for step in (8, LAST):
        shutil.rmtree(stage / str(step) / "params")
    before = tiny.files_in(stage)
    error = whale(*tiny.train_arguments(store, tmp_path / "run", "--until=tokenizer")).error()
    assert f"{stage / str(LAST) / 'params'} cannot be read" in error
    assert tiny.files_in(stage) == before


@pytest.mark.slow
def test_eight_devices_checkpoint_goes_on_with_one_with_four_and_with_two_by_two_and_is_fine_tuned_on_one(
    store, tmp_path, whale
):
    def train(workdir, devices, *more):
        arguments = tiny.train_arguments(store, workdir, "--until=tokenizer", *more)
        done = whale(*arguments, XLA_FLAGS=tiny.devices(devices))
        assert done.status == 0, done.err
        return done.err

    eight = tmp_path / "eight"
    said = train(eight, 8, "--config.mesh.fully_sharded=True")
    assert "tokenizer: embed over data: " in said and " MiB" in said
    stage = eight / "checkpoints" / "tokenizer"
    wanted = checkpoint.read_item(stage, LAST, "params")
    still = ("--config.stages.tokenizer.max_lr=0.0", "--config.stages.tokenizer.min_lr=0.0")
    steps = [f"--config.stages.tokenizer.{key}=1" for key in ("steps", "eval_every", "save_every")]
    paths = (f"--checkpoint={eight}", f"--data={store}", f"--workdir={tmp_path / 'tuned'}")
    assert whale("finetune", *paths, *still, *steps, "--until=tokenizer").status == 0
    tuned = checkpoint.read_item(tmp_path / "tuned" / "checkpoints" / "tokenizer", 1, "params")
    jax.tree.map(np.testing.assert_array_equal, tuned, wanted)
    shutil.rmtree(stage / str(LAST))
    for name, devices, mesh in (("one", 1, ()), ("four", 4, ()), ("square", 4, ("--config.mesh.model=2",))):
        workdir = tmp_path / name
        shutil.copytree(eight, workdir)
        assert f"resuming at step 8 of {LAST}" in train(workdir, devices, *mesh)
        got = checkpoint.read_item(workdir / "checkpoints" / "tokenizer", LAST, "params")
        jax.tree.map(lambda a, b, name=name: np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name), got, wanted)


class FromPipe:
    """Batches that come when a named pipe is written to."""

    def __init__(self, path):
        self._path = path

    def __next__(self):
        with activity.reading(self._path):
            self._path.read_bytes()
        return batches.example(len(jax.devices()), 2, 8, 8, 3)

    def get_state(self):
        return {}

    def report(self):
        return ""

    def close(self):
        pass


def test_a_loader_that_stands_still_says_what_it_waits_for(tmp_path, capsys):
    pipe = tmp_path / "episode.npz"
    os.mkfifo(pipe)
    feed = Feed(FromPipe(pipe), sharding.make_mesh(), stall_seconds=0.6)
    writer = threading.Timer(2.2, lambda: pipe.write_bytes(b"now"))
    writer.start()
    fed, waited = feed.get()
    assert fed.device.frames.shape[1] == 2 and 1.5 < waited < 60
    feed.close()
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: no batch for")]
    assert len(warnings) == 2 and f"reading {pipe} since" in warnings[0], warnings
    pipe.write_bytes(b"let the thread go")


@pytest.fixture
def source(store):
    return LocalSource(open_store(store), 1 << 20)


def test_nothing_is_compiled_again_and_nothing_but_batches_goes_to_the_devices(source, tmp_path):
    """After the first evaluation and the first save, the loop meets only what it has met."""
    config, compiled = tiny.get_config(), []
    history = tmp_path / "history" / "tokenizer.jsonl"

    def listen(event, _seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(len(history.read_text().splitlines()) if history.exists() else 0)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        train_stage("tokenizer", config, tmp_path, source, {}, sharding.make_placement(config.mesh))
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    # Line 1 is step 1; lines 4 and 5 are step 4 and its evaluation, before which step 2 was saved.
    assert compiled and max(compiled) <= 4, compiled


def test_a_window_of_steps_is_traced(source, tmp_path):
    config = tiny.get_config()
    config.stages.tokenizer.steps = 4
    placement = sharding.make_placement(config.mesh)
    train_stage("tokenizer", config, tmp_path, source, {}, placement, profile=parse_window("2:3"))
    (trace,) = (tmp_path / "profile" / "tokenizer").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000
    assert parse_window("") is None
    for text in ("2", "3:2", "0:1", "a:b"):
        with pytest.raises(WhaleError, match="FIRST:LAST"):
            parse_window(text)


def test_every_save_says_how_long_it_held_up_the_loop(trained):
    lines = (trained[0] / "history" / "dynamics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines if "save_ms" in line]
    assert len(entries) == LAST and any(entry["save_ms"] > 0 for entry in entries)
