"""The real command line answers bad input with one sentence and a nonzero status, and loses nothing."""

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from whale_jax.data.store.storage import rebuild_manifest

CONFIG = f"--config={Path(tiny.__file__)}"
CHEAP = "--config.evaluation.cheap.suites"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", CONFIG, "--workdir=W", "--config.stages.dynamic.max_lr=1"], "stages.dynamics.max_lr"),
        (["train", CONFIG, "--workdir=W", "--config.seed=soon"], "seed takes a int"),
        (["train", CONFIG, "--workdir=W", "--config.stages.reward.log_every=0"], "log_every is at least 1"),
        (["train", CONFIG, "--workdir=W", "--until=tokeniser"], "did you mean tokenizer"),
        (["train", CONFIG, "--workdir=W", "--untl=tokenizer"], "did you mean --until"),
        (["train", "--config=configs/quickstrat.py", "--workdir=W"], "configs/quickstart.py"),
        (["train", "--config=configs/whale_x.py:bse", "--workdir=W"], "did you mean base"),
        (["train", "--config=configs/quickstart.py:big", "--workdir=W"], "no variants"),
        (["train", CONFIG, "--workdir=W", "--config.data.root=W/nowhere"], "no data set at"),
        (["train", CONFIG, "--workdir=W", "--config.data.record.tasks=door-closed"], "did you mean door-close"),
        (["collect", "--root=W", "--tasks=plate-slid"], "did you mean plate-slide"),
        (["collect", "--root=W", "--tasks=reach", "--policies=exprt"], "did you mean expert"),
        (["collect", "--root=W", "--tasks=reach", "--camera=cornr"], "did you mean corner"),
        (["collect", "--root=W", "--tasks=reach", "--step=4"], "did you mean --steps"),
        (["collect", "--root=W", "--tasks=reach", "--config.seed=1"], "no option named"),
        (["evaluate", "--checkpoint=W"], "no checkpoint in"),
        (["evaluate", "--checkpoint=W", "--suite=vidio"], "did you mean video"),
        (["evaluate", "--checkpoint=W", "--evaluation.vale.horizon=4"], "did you mean evaluation.value.horizon"),
        (["evaluate", "--checkpoint=W", "--evaluation.value.horizon=4"], "add --suite=value"),
        (["train", CONFIG, "--workdir=W", "--config.evaluation.value.horzon=4"], "evaluation.value.horizon"),
        (["train", CONFIG, "--workdir=W", f"{CHEAP}=vidio"], "did you mean video"),
        (["train", CONFIG, "--workdir=W", "--config.evaluation.suites=vidio"], "did you mean video"),
        (["train", CONFIG, "--workdir=W", "--config.evaluation.suites=()"], "suites names none for the report"),
        (
            ["train", CONFIG, "--workdir=W", "--config.evaluation.during_training=5", f"{CHEAP}=vidio"],
            "did you mean video",
        ),
        (["imagine", "--checkpoint=W", "--episode=W/e.npz", "--out=W/e.mp4"], "no checkpoint in"),
        (["replay", "W"], "holds no failed step"),
        (["tarin"], "did you mean train"),
        ([], "required: COMMAND"),
        (["train", CONFIG], "required: --workdir"),
        (["bench", "--steps=abc"], "invalid int value: 'abc'"),
        (["bench", "--steps=0"], "--steps=0 would time nothing"),
        (["bench", "--stages=tokeniser"], "did you mean tokenizer"),
        (["bench", "imagine", "--batches=0"], "--batches=0 would time nothing"),
        (["bench", "imagine", "--batches=0,2"], "--batches=0,2 would time nothing"),
        (["bench", "imagine", "--batches=x"], "--batches has 'x'"),
        (["bench", "imagine", "--horizon=0"], "--horizon=0 would time nothing"),
        (["bench", "imagine", "--config.model.tokenizer.patch=7"], "patch of 7 pixels"),
        (["bench", "kernels", "--config.model.num_frames=1"], "model.num_frames is at least 2"),
        (["inspect", "--config=README.md"], "README.md is no config file"),
        (["inspect", "--config=configs"], "is a directory and no config file"),
        (["inspect", "--config=quickstrat"], "did you mean quickstart"),
        (["inspect", "--config.model.tokenizer.patch=7"], "patch of 7 pixels"),
        (["inspect", "--mesh=2x1", "--config.model.num_frames=1"], "model.num_frames is at least 2"),
        (["train", "--workdir=W", "--config.model.tokenizer.patch=7"], "patch of 7 pixels"),
        (["train", "--workdir=W", "--config.model.execution.time_kernel=bounded"], "cannot be built: the bounded"),
        (["train", "--workdir=W", "--config.evaluation.horizon=40"], "have 21 frames, and the report needs 44"),
        (["train", "--workdir=W", "--config.data.record.episodes.train=0"], "has none to train on"),
        (
            ["train", "--workdir=W", "--config.data.record.episodes.valid=0", "--config.data.record.episodes.test=0"],
            "has none for the report",
        ),
        (["train", "--workdir=W", "--config.mesh.data=3"], "A mesh of 3 x 1 needs 3 devices"),
        (["collect", "--root=W", "--tasks=reach", "--workers=-1"], "-1 processes record nothing"),
    ],
)
def test_names_that_do_not_exist(arguments, says, tmp_path, whale):
    arguments = [a.replace("=W", f"={tmp_path}") if a != "W" else str(tmp_path) for a in arguments]
    done = whale(*arguments)
    assert says in done.error(), done.err
    assert done.status == 2 and not done.out
    left = {p.name for p in tmp_path.rglob("*") if p.is_file()} - {"phases.json", "run.json", ".lock"}
    assert not left, left


def test_debug_shows_the_traceback_and_a_real_process_does_not():
    arguments = ("train", CONFIG, "--workdir=/nonexistent/run", "--config.sed=1")
    done = tiny.whale(*arguments)
    assert "did you mean seed" in done.error() and done.status == 2
    done = tiny.whale(*arguments, "--debug")
    assert "Traceback" in done.err and "WhaleError" in done.err and done.status != 0


@pytest.fixture
def broken(store, tmp_path):
    """A copy of the store to break."""
    return Path(shutil.copytree(store, tmp_path / "broken"))


def rewrite(path: Path, **arrays) -> None:
    """An episode's file by hand, past every check of `write_episode`."""
    with np.load(path) as archive:
        fields = dict(archive)
    np.savez_compressed(path, **(fields | arrays))


def change_manifest(root: Path, **fields) -> None:
    path = root / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def train_error(whale, store, tmp_path, *more) -> str:
    """The sentence that training ends with; the store keeps every byte."""
    before = tiny.files_in(store)
    error = whale(*tiny.train_arguments(store, tmp_path / "run", *more)).error()
    assert tiny.files_in(store) == before
    assert not list((tmp_path / "run").glob("checkpoints/*/*"))
    return error


def first_episode(root: Path, split: str = "train") -> Path:
    return sorted(root.glob(f"episodes/{split}/**/*.npz"))[0]


def test_an_empty_data_directory(tmp_path, whale):
    (tmp_path / "data").mkdir()
    assert "holds no episodes" in train_error(whale, tmp_path / "data", tmp_path)


def test_a_half_written_store(broken, tmp_path, whale):
    manifest = (broken / "manifest.json").read_text()
    (broken / "manifest.json").unlink()
    assert "half-written" in train_error(whale, broken, tmp_path)
    (broken / "manifest.json").write_text(manifest)
    victim = first_episode(broken)
    content = victim.read_bytes()
    victim.unlink()
    error = train_error(whale, broken, tmp_path)
    assert "1 are missing" in error and victim.name in error
    victim.write_bytes(content[: len(content) // 2])
    assert "1 truncated" in train_error(whale, broken, tmp_path)


def test_an_episode_whose_middle_is_damaged(broken, tmp_path, whale):
    for victim in broken.glob("episodes/train/**/*.npz"):
        content = bytearray(victim.read_bytes())
        content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
        victim.write_bytes(content)
    assert "not a whole episode file" in train_error(whale, broken, tmp_path)


def test_a_store_of_another_schema(broken, tmp_path, whale):
    change_manifest(broken, version=2)
    assert "version 2" in train_error(whale, broken, tmp_path)
    change_manifest(broken, format="dreamer", version=1)
    assert "'dreamer'" in train_error(whale, broken, tmp_path)
    (broken / "manifest.json").write_text("{")
    assert "not valid JSON" in train_error(whale, broken, tmp_path)


def test_frames_of_another_size(tmp_path, whale):
    other = tiny.write_store(tmp_path / "large", side=24, each=1)
    error = train_error(whale, other, tmp_path)
    assert "24x24" in error and "model.image_size is 16" in error


def test_actions_of_another_dimension(store, tmp_path, whale):
    error = train_error(whale, store, tmp_path, "--config.model.action_dim=7")
    assert "4 dimensions" in error and "model.action_dim is 7" in error


@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "actions of .* are not finite at step 3"), (1.5, "'y' .*at step 3 is 1.5, outside")]
)
def test_actions_that_no_robot_can_take(value, says, broken, tmp_path, whale):
    import re

    actions = np.zeros((tiny.STEPS, 4), np.float32)
    actions[3, 1] = value
    for victim in broken.glob("episodes/train/**/*.npz"):
        rewrite(victim, actions=actions)
    error = train_error(whale, broken, tmp_path)
    assert re.search(says, error), error
    assert ".npz" in error


def test_rewards_that_are_not_finite(broken, tmp_path, whale):
    for victim in broken.glob("episodes/train/**/*.npz"):
        rewrite(victim, rewards=np.full(tiny.STEPS, np.inf, np.float32))
    assert "rewards of" in train_error(whale, broken, tmp_path)


def test_a_store_without_training_or_held_out_episodes(broken, tmp_path, whale):
    shutil.rmtree(broken / "episodes" / "test")
    shutil.rmtree(broken / "episodes" / "valid")
    rebuild_manifest(broken)
    assert "no held-out episodes" in train_error(whale, broken, tmp_path)
    shutil.rmtree(broken / "episodes")
    (broken / "episodes").mkdir()
    change_manifest(broken, episodes=[])
    assert "holds no episodes" in train_error(whale, broken, tmp_path)


def test_a_horizon_longer_than_the_episodes_is_refused_before_training(store, tmp_path, whale):
    error = train_error(whale, store, tmp_path, "--config.evaluation.horizon=40")
    assert f"has {tiny.STEPS + 1} frames and the report needs 42" in error


def test_evaluation_on_a_store_that_does_not_fit(trained, tmp_path, whale):
    before = tiny.files_in(trained[0])
    large = tiny.write_store(tmp_path / "large", side=24, each=1)
    error = whale("evaluate", f"--checkpoint={trained[0]}", f"--data={large}", f"--output={tmp_path / 'o'}").error()
    assert "this model takes uint8" in error and "16, 16" in error
    short = tiny.write_store(tmp_path / "short", steps=3, each=1)
    error = whale("evaluate", f"--checkpoint={trained[0]}", f"--data={short}", f"--output={tmp_path / 'o'}").error()
    assert "does not fit" in error
    assert tiny.files_in(trained[0]) == before and not (tmp_path / "o").exists()


def test_evaluation_on_a_robot_of_other_dimensions(trained, broken, tmp_path, whale):
    spec = json.loads((broken / "manifest.json").read_text())["action_spec"]
    change_manifest(broken, action_spec={k: v[:2] if isinstance(v, list) else v for k, v in spec.items()})
    for victim in broken.glob("episodes/test/**/*.npz"):
        rewrite(victim, actions=np.zeros((tiny.STEPS, 2), np.float32))
    error = whale("evaluate", f"--checkpoint={trained[0]}", f"--data={broken}", f"--output={tmp_path / 'o'}").error()
    assert "4 dimensions" in error


@pytest.fixture
def resumable(trained, tmp_path):
    """A work directory with two tokenizer checkpoints, the newer of them not the last step."""
    workdir = tmp_path / "run"
    shutil.copytree(trained[0] / "checkpoints" / "tokenizer", workdir / "checkpoints" / "tokenizer")
    return workdir


def resume_error(whale, store, workdir, *more) -> str:
    before = tiny.files_in(workdir / "checkpoints")
    error = whale(*tiny.train_arguments(store, workdir, *more)).error()
    assert tiny.files_in(workdir / "checkpoints") == before
    return error


def test_a_checkpoint_of_another_architecture(resumable, store, whale):
    error = resume_error(whale, store, resumable, "--config.model.tokenizer.num_codes=64")
    assert "another architecture" in error and "num_codes is 32 there and 64 in the config" in error


def test_the_only_checkpoint_is_truncated(resumable, store, whale):
    newest = resumable / "checkpoints" / "tokenizer" / "10"
    shutil.rmtree(newest.with_name("8"))
    for path in [p for p in (newest / "params").rglob("*") if p.is_file() and p.parent.name == "d"]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = resume_error(whale, store, resumable, "--until=tokenizer")
    assert f"checkpoint item {newest / 'params'} cannot be read" in error and f"delete or move {newest} " in error


@pytest.mark.parametrize("item", ["meta", "data"])
def test_a_checkpoint_whose_description_is_cut_short_is_passed_over(item, resumable, store, whale):
    newest = resumable / "checkpoints" / "tokenizer" / "10"
    path = newest / item / "metadata"
    path.write_text(path.read_text()[:20])
    done = whale(*tiny.train_arguments(store, resumable, "--until=tokenizer"))
    assert done.status == 0 and "resuming at step 8" in done.err, done.err
    assert f"step 10 of {newest.parent} is passed over for step 8" in done.err and str(newest / item) in done.err


def test_a_finished_stage_needs_no_optimiser(resumable, store, whale):
    shutil.rmtree(resumable / "checkpoints" / "tokenizer" / "10" / "optimizer")
    done = whale(*tiny.train_arguments(store, resumable, "--until=tokenizer"))
    assert done.status == 0 and "resuming" not in done.err, done.err


def test_a_truncated_checkpoint_is_not_evaluated(trained, tmp_path, whale):
    copy = Path(shutil.copytree(trained[0] / "checkpoints" / "reward" / "10", tmp_path / "10"))
    for path in [p for p in (copy / "params").rglob("*") if p.is_file() and p.parent.name == "d"]:
        path.write_bytes(b"")
    assert "cannot be read" in whale("evaluate", f"--checkpoint={copy}").error()
    shutil.rmtree(copy / "params")
    assert "cannot be read" in whale("evaluate", f"--checkpoint={copy}").error()


def test_a_checkpoint_of_another_format(resumable, store, whale):
    path = resumable / "checkpoints" / "tokenizer" / "10" / "meta" / "metadata"
    path.write_text(path.read_text().replace("whale-checkpoint/3", "whale-checkpoint/9"))
    assert "'whale-checkpoint/9'" in resume_error(whale, store, resumable)


def test_a_work_directory_that_is_a_file(store, tmp_path, whale):
    (tmp_path / "run").write_text("precious")
    error = whale(*tiny.train_arguments(store, tmp_path / "run")).error()
    assert "is a file" in error
    assert (tmp_path / "run").read_text() == "precious"


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int):
    """A file system of its own, where the system lets us mount one."""
    path.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    if sys.platform != "linux" or shutil.which("mount") is None or subprocess.run(options).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(path: Path, leave: int) -> None:
    """Takes all the room there is but `leave` bytes."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(path.parent).free - leave))


@pytest.mark.parametrize("leave", [2_000_000, 0])
def test_a_full_disk(leave, trained, store, tmp_path, whale):
    """The behaviour model cannot be saved: the run says so, the tokenizer stays whole, and a free disk goes on."""
    with small_disk(tmp_path / "disk", 16) as disk:
        workdir = disk / "run"
        shutil.copytree(trained[0] / "checkpoints" / "tokenizer", workdir / "checkpoints" / "tokenizer")
        before = tiny.files_in(workdir / "checkpoints" / "tokenizer")
        fill(disk / "filler", leave)
        arguments = tiny.train_arguments(store, workdir, "--until=behaviour", "--config.log.tensorboard=True")
        done = whale(*arguments)
        error = done.error()
        assert "disk is full" in error, done.err
        assert tiny.files_in(workdir / "checkpoints" / "tokenizer") == before
        (disk / "filler").unlink()
        assert whale(*arguments).status == 0
        tiny.assert_equal_trees(*(tiny.read_tree(w / "checkpoints/behaviour/10/params") for w in (trained[0], workdir)))


def test_no_gl(tmp_path, whale):
    """Libraries that cannot be loaded hide those that can."""
    if sys.platform != "linux":
        pytest.skip("hides the libraries with LD_LIBRARY_PATH")
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    for name in ("libEGL.so.1", "libEGL.so", "libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        (hidden / name).write_bytes(b"no library")
    arguments = ("collect", f"--root={tmp_path / 'store'}", "--tasks=reach", "--policies=expert", "--steps=2")
    error = whale(*arguments, LD_LIBRARY_PATH=str(hidden), MUJOCO_GL="glx", DISPLAY="").error()
    assert "No off-screen GL works" in error and "libosmesa6" in error
    assert not list((tmp_path / "store").rglob("*.npz"))


def test_a_finished_stage_is_not_quietly_left_as_it_is(trained, store, whale):
    before = tiny.files_in(trained[0])
    error = whale(*tiny.train_arguments(store, trained[0], "--config.stages.tokenizer.steps=20")).error()
    assert "stages.tokenizer.steps=10" in error and "another --workdir" in error
    assert tiny.files_in(trained[0]) == before


def test_a_task_with_a_single_held_out_clip(store, tmp_path, whale):
    few = tmp_path / "few"
    shutil.copytree(store, few)
    for path in sorted(few.glob("episodes/test/reach/**/*.npz"))[1:]:
        path.unlink()
    rebuild_manifest(few)
    error = train_error(whale, few, tmp_path)
    assert "one held-out clip of reach" in error and "record more episodes" in error
