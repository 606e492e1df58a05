"""Eight simulated devices compute what one device computes, from parameters that are made in their shards."""

import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract import batch as batches
from whale_jax.jobs.configuration import default_config, make_stage
from whale_jax.nn.placement import Placement
from whale_jax.training import sharding
from whale_jax.training.step import rule_matches

PROGRAM = Path(__file__).parent / "sharded_run.py"
# data, model, fully sharded, parts of a batch: and the share of the parameters that a device may hold
MESHES = {"8,1,0,1": 1.0, "1,8,0,1": 0.4, "4,2,0,1": 0.7, "8,1,1,1": 0.3}
IN_PARTS = "4,2,1,2,tokenizer,dynamics"


def _reports(store, devices: int, *meshes: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(store), *meshes],
        env=tiny.environment(XLA_FLAGS=tiny.devices(devices), JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def alone(store):
    whole, in_parts = _reports(store, 1, "1,1,0,1", "1,1,0,2,tokenizer,dynamics")
    assert whole["devices"] == 1
    return whole, in_parts


@pytest.fixture(scope="module")
def eight(store):
    """Reports of eight devices on every mesh; one process, for much of what it compiles is the same on all of them."""
    return dict(zip(MESHES, _reports(store, 8, *MESHES), strict=True))


@pytest.mark.slow
def test_a_batch_in_parts_means_the_same_to_the_tokenizer(alone):
    """The tokenizer draws nothing at random, so that its gradient is that of the whole batch."""
    whole, in_parts = alone
    np.testing.assert_allclose(in_parts["losses"]["tokenizer"], whole["losses"]["tokenizer"], rtol=1e-5)


@pytest.mark.slow
def test_losses_over_twenty_steps_are_those_of_one_device(eight, alone):
    for mesh, share in MESHES.items():
        report = eight[mesh]
        assert report["devices"] == 8
        for name in tiny.COMPONENTS:
            where = f"{name} on {mesh}"
            np.testing.assert_allclose(report["losses"][name], alone[0]["losses"][name], rtol=1e-5, err_msg=where)
            assert len(set(report["losses"][name])) >= 19, "parameters move at every step but the first, of rate 0"
            assert name == "reward" or report["share"][name] <= share, (where, report["share"])


@pytest.mark.slow
def test_a_batch_in_parts_is_the_same_on_a_mesh(store, alone):
    (spread,), (_, in_parts) = _reports(store, 8, IN_PARTS), alone
    for name in ("tokenizer", "dynamics"):
        np.testing.assert_allclose(spread["losses"][name], in_parts["losses"][name], rtol=1e-5, err_msg=name)


def inspected(whale, mesh: str, stages: str, *more: str) -> dict[str, dict]:
    """What `whale inspect --mesh` says of these stages of the wide `tiny`."""
    done = whale("inspect", "--config=tests/tiny.py:wide", f"--mesh={mesh}", f"--stages={stages}", "--json", *more)
    assert done.status == 0, done.err
    return json.loads(done.out)["stages"]


def total(collectives: list[dict], kind: str) -> int:
    return sum(one["times"] * one["bytes"] for one in collectives if one["kind"] == kind)


def ways(collectives: list[dict]) -> set[tuple[str, str]]:
    return {(one["kind"], one["axes"]) for one in collectives}


@pytest.mark.slow
def test_data_parallel_sends_gradients_and_nothing_else(whale):
    for stage in inspected(whale, "8x1", "tokenizer,dynamics").values():
        assert ways(stage["collectives"]) == {("all-reduce", "data")}
        parameters = stage["memory_per_device"]["parameters"]
        assert parameters / 2 < total(stage["collectives"], "all-reduce") < parameters


@pytest.mark.slow
def test_fully_sharded_gathers_what_it_computes_with_and_nothing_else(whale):
    """Parameters once for each pass, in bfloat16, those of the encoder and the prior once: never an activation."""
    stage = inspected(whale, "8x1", "dynamics", "--config.mesh.fully_sharded=True")["dynamics"]
    found, held = stage["collectives"], stage["memory_per_device"]["parameters"]
    assert ways(found) == {("all-gather", "data"), ("all-reduce", "data")}
    # The embedding is gathered in float32 for the look-up, and once in bfloat16.
    assert total(found, "all-gather") < 3 * 8 * held


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1x8", "4x2"])
def test_tensor_parallel_adds_up_activations_and_gathers_the_embedding_alone(whale, mesh):
    found = inspected(whale, mesh, "dynamics")["dynamics"]["collectives"]
    kinds = {("all-reduce", "data"), ("all-reduce", "model"), ("all-reduce", "data+model"), ("all-gather", "model")}
    assert ways(found) <= kinds and ("all-reduce", "model") in ways(found)
    gathered = [one for one in found if one["kind"] == "all-gather"]
    embedding, tokens = 32 * 32 * 4, 16 * 3 * 16 * 4
    assert all(one["bytes"] <= max(embedding, 8 * tokens) for one in gathered), gathered


def test_a_mesh_must_multiply_to_the_devices():
    count = len(jax.devices())
    assert sharding.make_mesh().shape == {"data": count, "model": 1}
    with pytest.raises(WhaleError, match=f"3 x {count} needs {3 * count} devices and {count} are here"):
        sharding.make_mesh(3, count)
    for data, model in ((-1, 2 * count), (-1, 0), (0, 1), (-1, -1)):
        with pytest.raises(WhaleError, match="config.mesh"):
            sharding.make_mesh(data, model)


def placement(**changes):
    settings = default_config().mesh.to_dict()
    rules = settings["rules"] | changes.pop("rules", {})
    return sharding.make_placement(settings | changes | {"rules": rules})


def test_rules_are_one_line_of_config_each():
    assert placement().rules["embed"] is None and placement().rules["mlp"] == "model"
    assert placement(fully_sharded=True).rules == placement().rules | {"embed": "data"}
    assert placement(rules={"mlp": ""}).rules["mlp"] is None
    with pytest.raises(WhaleError, match="no logical axis named 'mpl'; did you mean mlp"):
        placement(rules={"mpl": "model"})
    with pytest.raises(WhaleError, match="no mesh axis named 'modle'; did you mean model"):
        placement(rules={"mlp": "modle"})


class EightWays:
    """A mesh that this machine need not have."""

    shape = {"data": 8, "model": 1}
    size = 8
    axis_names = ("data", "model")


def test_what_each_rule_matched_is_counted():
    """`tiny`: of eight kernels with an embed axis of 16, all divide by 8; of 3-wide axes none would."""
    mesh = jax.sharding.AbstractMesh((8, 1), ("data", "model"))
    stage = make_stage(tiny.get_config(), "dynamics")
    found = rule_matches(stage, Placement(mesh, {"embed": "data", "mlp": "model"}))
    (match,) = found
    assert (match.rule, match.axis, match.whole) == ("embed", "data", 0)
    boxed = jax.eval_shape(stage.init, jax.random.key(0))
    named = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert match.split == sum("embed" in spec for spec in named) > 5
    assert sharding.describe(found).startswith(f"embed over data: {match.split} arrays, ")


def test_a_rule_that_matches_nothing_is_an_error():
    odd = Placement(jax.sharding.AbstractMesh((1, 7), ("data", "model")), {"heads": "model", "members": "model"})
    stage = make_stage(tiny.get_config(), "dynamics")
    found = rule_matches(stage, odd)
    assert all(m.split == 0 for m in found) and "stay whole" in sharding.describe(found)
    with pytest.raises(
        WhaleError, match="rule heads over model matches nothing: none of the 4 arrays .* divides over 7"
    ):
        sharding.check_matches([found], odd)
    with pytest.raises(WhaleError, match="rule members over model matches nothing: no array"):
        sharding.check_matches([found[1:]], odd)


def test_a_batch_is_put_on_the_mesh_whole_and_unchanged():
    batch = batches.example(4, 2, 8, 8, 3)
    batch.actions[:] = np.arange(24).reshape(4, 2, 3)
    placed = sharding.put_batch(batch, sharding.make_mesh())
    np.testing.assert_array_equal(placed.actions, batch.actions)
    assert placed.frames.sharding.spec == PartitionSpec("data")


def test_the_wrong_mesh_and_batch_on_the_command_line(store, tmp_path, whale):
    flags = {"XLA_FLAGS": tiny.devices(8)}
    arguments = tiny.train_arguments(store, tmp_path / "run", "--until=tokenizer")
    error = whale(*arguments, "--config.mesh.model=3", **flags).error()
    assert "A mesh of 2 x 3 needs 6 devices and 8 are here" in error
    error = whale(*arguments, "--config.stages.tokenizer.batch_size=6", **flags).error()
    assert "batch_size is 6, which does not divide over 8 devices; make it a multiple of 8" in error
    parts = ("--config.stages.reward.batch_size=8", "--config.stages.reward.accumulate=2")
    error = whale(*arguments, *parts, **flags).error()
    assert (
        "batch_size is 8, which, in 2 parts, does not divide over 8 devices in pairs; make it a multiple of 16" in error
    )
    error = whale(*arguments, "--config.mesh.model=8", "--config.mesh.rules.members=model", **flags).error()
    assert "rule heads over model matches nothing" in error
    with pytest.raises(WhaleError, match="does not divide"):
        sharding.put_batch(batches.example(3, 2, 8, 8, 3), EightWays())
