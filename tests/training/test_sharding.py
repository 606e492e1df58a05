"""Eight simulated devices compute what one device computes, from parameters that are made in their shards."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from whale_jax.data import batch as batches
from whale_jax.errors import WhaleError
from whale_jax.training import sharding
from whale_jax.training.stages import STAGES

PROGRAM = Path(__file__).parent / "sharded_run.py"
QUICK_COMPILE = "--xla_backend_optimization_level=0"


def _reports(store, devices: int, *meshes: str) -> list[dict]:
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILE}"
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(store), *meshes],
        env=tiny.environment(XLA_FLAGS=flags, JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def alone(store):
    (report,) = _reports(store, 1, "1,1,0")
    assert report["devices"] == 1
    return report


def _check(report: dict, alone: dict, share: float) -> None:
    assert report["devices"] == 8
    for name in STAGES:
        np.testing.assert_allclose(report["losses"][name], alone["losses"][name], rtol=1e-4, err_msg=name)
        assert len(set(report["losses"][name])) >= 4, "parameters move at every step but the first, whose rate is 0"
    for name in ("tokenizer", "behaviour", "dynamics"):
        assert report["share"][name] <= share, report["share"]


@pytest.mark.slow
def test_eight_devices_along_the_batch(store, alone):
    (report,) = _reports(store, 8, "8,1,0")
    _check(report, alone, share=1.0)
    assert set(report["share"].values()) == {1.0}


@pytest.mark.slow
def test_four_by_two_and_fully_sharded(store, alone):
    split, full = _reports(store, 8, "4,2,0", "4,2,1")
    _check(split, alone, share=0.75)
    _check(full, alone, share=0.4)


def test_a_mesh_must_multiply_to_the_devices():
    count = len(jax.devices())
    assert sharding.make_mesh().shape == {"data": count, "model": 1}
    with pytest.raises(WhaleError, match=f"3 x {count} needs {3 * count} devices and {count} are here"):
        sharding.make_mesh(3, count)
    with pytest.raises(WhaleError, match="config.mesh"):
        sharding.make_mesh(-1, 2 * count)


def test_fully_sharded_splits_the_embedding_axis_too():
    assert sharding.rules(False)["embed"] is None
    assert sharding.rules(True) == sharding.rules(False) | {"embed": "data"}


def test_a_batch_is_put_on_the_mesh_whole_and_unchanged():
    batch = batches.example(4, 2, 8, 8, 3)
    batch.actions[:] = np.arange(24).reshape(4, 2, 3)
    placed = sharding.put_batch(batch, sharding.make_mesh())
    np.testing.assert_array_equal(placed.actions, batch.actions)
    assert placed.frames.sharding.spec == PartitionSpec("data")


class EightWays:
    """A mesh that this machine need not have."""

    shape = {"data": 8}


def test_the_wrong_mesh_and_batch_on_the_command_line(store, tmp_path, whale):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    arguments = tiny.train_arguments(store, tmp_path / "run", "--until=tokenizer")
    error = whale(*arguments, "--config.mesh.model=3", **flags).error()
    assert "A mesh of 2 x 3 needs 6 devices and 8 are here" in error
    error = whale(*arguments, "--config.stages.tokenizer.batch_size=6", **flags).error()
    assert "batch_size is 6, which does not divide over 8 devices" in error
    with pytest.raises(WhaleError, match="does not divide"):
        sharding.put_batch(batches.example(3, 2, 8, 8, 3), EightWays())
