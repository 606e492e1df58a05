"""A checkpoint is plain Orbax, stands alone, and says what is wrong with it when it is broken."""

import json
import shutil
import subprocess
import sys

import pytest
import tiny

import whale_jax
from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.models.saved import find
from whale_jax.training.checkpoint import read_item, steps_in


@pytest.fixture(scope="module")
def model(trained):
    return whale_jax.load(trained[0])


@pytest.fixture(scope="module")
def clip(store):
    episode = open_store(store).select(split="test").read(0)
    return episode.frames[None, :2], episode.actions[None, :4]


def test_a_program_without_whale_restores_it(trained):
    """Orbax is all it takes: the program below sees no whale_jax at all."""
    program = (
        "import sys, json, jax, orbax.checkpoint as ocp\n"
        "with ocp.StandardCheckpointer() as checkpointer:\n"
        "    trees = {n: checkpointer.restore(f'{sys.argv[1]}/{n}') for n in ('params', 'optimizer', 'example')}\n"
        "assert not any(name.split('.')[0] == 'whale_jax' for name in sys.modules)\n"
        "print(json.dumps([sorted(trees['params']), sorted(trees['optimizer']), trees['example']['frames'].shape]))"
    )
    step = trained[0] / "checkpoints" / "ensemble" / "10"
    command = [sys.executable, "-I", "-c", program, str(step)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    params, optimizer, frames = json.loads(done.stdout.splitlines()[-1])
    assert params == sorted(tiny.STAGES)
    assert {"step", "opt_state", "extra"} <= set(optimizer)
    assert frames == [1, 4, 16, 16, 3]


def test_it_has_every_item_and_its_meta_rebuilds_the_model(trained):
    step = trained[0] / "checkpoints" / "ensemble" / "10"
    assert {"params", "optimizer", "data", "meta", "example"} <= {p.name for p in step.iterdir()}
    meta = json.loads((step / "meta" / "metadata").read_text())
    assert meta["stage"] == "ensemble" and meta["finished"] and meta["format"] == "whale-checkpoint/3"
    assert meta["action_spec"]["names"] == ["x", "y", "z", "gripper"]
    assert meta["config"]["name"] == "tiny" and "jax" in meta["versions"]


def test_two_checkpoints_of_each_stage_are_kept(trained):
    assert {name: steps_in(trained[0] / "checkpoints" / name) for name in tiny.STAGES} == {
        name: [8, 10] for name in tiny.STAGES
    }


def test_it_loads_from_every_directory_and_from_a_copy(trained, model, clip, tmp_path):
    """A rollout is bit for bit the same wherever the checkpoint lies."""
    stage = trained[0] / "checkpoints" / "ensemble"
    copy = tmp_path / "elsewhere" / "10"
    shutil.copytree(stage / "10", copy)
    future = model.imagine(*clip, uncertainty="entropy")
    assert future.frames.shape == (1, 3, 16, 16, 3) and future.rewards.shape == (1, 3)
    assert model.source == stage / "10"
    for place in (stage, stage / "10", copy, str(copy)):
        other = whale_jax.load(place)
        same = other.imagine(*clip, uncertainty="entropy")
        assert same.frames.tobytes() == future.frames.tobytes()
        assert same.rewards.tobytes() == future.rewards.tobytes()
        assert same.uncertainty.tobytes() == future.uncertainty.tobytes()
    assert whale_jax.load(copy).source == copy


def test_a_stage_s_checkpoint_loads_but_will_not_imagine_yet(trained, clip):
    early = whale_jax.load(trained[0] / "checkpoints" / "tokenizer")
    assert list(early.params) == ["tokenizer"]
    assert early.reconstruct(clip[0]).shape == clip[0].shape
    with pytest.raises(WhaleError, match="no trained behaviour and dynamics"):
        early.imagine(*clip)


def test_find_prefers_the_latest_stage_and_says_when_there_is_none(trained, tmp_path):
    assert find(trained[0]) == (trained[0] / "checkpoints" / "ensemble", 10)
    with pytest.raises(WhaleError, match="no checkpoint"):
        find(tmp_path)


def test_a_missing_item_names_the_step_to_move_away(trained):
    directory = trained[0] / "checkpoints" / "ensemble"
    with pytest.raises(WhaleError, match=f"delete or move {directory / '10'} "):
        read_item(directory, 10, "nothing")


def test_frozen_components_stay_bit_for_bit_what_their_stage_made(trained):
    final = tiny.read_tree(trained[0] / "checkpoints" / "ensemble" / "10" / "params")
    for name in tiny.STAGES:
        own = tiny.read_tree(trained[0] / "checkpoints" / name / "10" / "params")
        prefix = f"['{name}']"
        own = {k: v for k, v in own.items() if k.startswith(prefix)}
        assert own
        tiny.assert_equal_trees(own, {k: v for k, v in final.items() if k.startswith(prefix)})


def test_every_stage_has_changed_its_own_component(trained):
    for name in tiny.STAGES:
        before, after = (tiny.read_tree(trained[0] / "checkpoints" / name / s / "params") for s in ("8", "10"))
        own = [k for k in after if k.startswith(f"['{name}']")]
        moved = [k for k in own if before[k].tobytes() != after[k].tobytes()]
        assert len(moved) > len(own) // 2 or name == "behaviour"
