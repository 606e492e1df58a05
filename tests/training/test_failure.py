"""A step that is not finite stops the run, is kept with all that explains it, and can be run again."""

import json
import shutil

import numpy as np
import pytest
import tiny


def _strict(text: str) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def exploded(trained, store, tmp_path_factory):
    """A run whose dynamics explode, on a tokenizer and behaviour model that are fine; and what it printed."""
    workdir = tmp_path_factory.mktemp("exploded") / "run"
    for name in ("tokenizer", "behaviour"):
        shutil.copytree(trained[0] / "checkpoints" / name, workdir / "checkpoints" / name)
    before = tiny.files_in(workdir / "checkpoints")
    more = ["--config.stages.dynamics.max_lr=1e30", "--config.stages.dynamics.save_every=1"]
    arguments = tiny.train_arguments(store, workdir, *more)
    return workdir, before, arguments, tiny.forked(workdir.parent, *arguments)


@pytest.fixture(scope="module")
def failed_step(exploded):
    steps = list((exploded[0] / "failures" / "dynamics").iterdir())
    assert len(steps) == 1
    return steps[0]


def test_it_stops_with_one_sentence_that_names_the_step_and_the_command(exploded, failed_step):
    *_, done = exploded
    error = done.error()
    assert done.status == 2
    assert f"Stage dynamics: step {failed_step.name} was not finite" in error
    assert error.endswith(f"whale replay {failed_step}")


def test_it_keeps_the_step_its_batch_and_its_norms(failed_step):
    report = _strict((failed_step / "report.json").read_text())
    assert report["step"] == int(failed_step.name) and report["seed"] == 0
    with np.load(failed_step / "batch.npz") as batch:
        assert batch["frames"].shape == (8, 4, 16, 16, 3) and batch["frames"].any()
        assert set(batch.files) >= {"actions", "rewards", "frame_mask", "action_mask", "episode", "start"}
    assert report["not_finite"]["gradients"] or report["loss"] in ("nan", "inf")
    params = tiny.read_tree(failed_step / "params")
    assert {name.split("'")[1] for name in params} == {"tokenizer", "behaviour", "dynamics"}


def test_earlier_checkpoints_are_untouched_and_the_last_one_is_of_a_good_step(exploded, failed_step):
    workdir, before, *_ = exploded
    after = tiny.files_in(workdir / "checkpoints")
    assert {name: after.get(name) for name in before} == before
    saved = sorted(int(p.name) for p in (workdir / "checkpoints" / "dynamics").iterdir())
    assert saved and saved[-1] <= int(failed_step.name)
    for name, array in tiny.read_tree(workdir / "checkpoints" / "dynamics" / str(saved[-1]) / "params").items():
        assert np.isfinite(array).all(), name


def test_the_named_command_runs_the_step_again(exploded, failed_step, whale):
    done = whale("replay", failed_step)
    assert done.status == 0, done.err
    replayed, saved = _strict(done.out), _strict((failed_step / "report.json").read_text())
    assert replayed["gradient_norms"].keys() == replayed["parameter_norms"].keys()
    assert any("qkv" in name for name in replayed["gradient_norms"])
    assert replayed["not_finite"] == saved["not_finite"] and replayed["loss"] == saved["loss"]


def test_running_it_again_fails_at_the_same_step(exploded, failed_step):
    workdir, _, arguments, _ = exploded
    again = tiny.forked(workdir.parent, *arguments)
    assert f"step {failed_step.name} was not finite" in again.error()
    assert [p.name for p in failed_step.parent.iterdir()] == [failed_step.name]


def test_replay_of_something_else_is_refused(whale, tmp_path):
    assert "holds no failed step" in whale("replay", tmp_path).error()
