"""Rollouts spread over several devices imagine what one device imagines."""

import subprocess
import sys

import numpy as np
import pytest
import tiny

PROGRAM = """
import sys
import numpy as np
import tiny

world = tiny.random_world(16, members=2)
rng = np.random.default_rng(0)
frames = rng.integers(0, 256, (6, 3, 16, 16, 3), np.uint8)
actions = rng.uniform(-1, 1, (6, 9, 4)).astype(np.float32)
future = world.imagine(frames, actions, uncertainty="ensemble")
played = iter(actions.swapaxes(0, 1)[2:])
import jax
closed = world.imagine(frames, actions[:, :2], policy=lambda *_: next(played), horizon=7, key=jax.random.key(0))
spread = world._spread(frames)[0].sharding
np.savez(sys.argv[1], frames=future.frames, uncertainty=future.uncertainty, rewards=future.rewards,
         closed=closed.frames, devices=len(spread.device_set), whole=spread.is_fully_replicated)
"""


def _run(path, devices: int):
    environment = tiny.environment(XLA_FLAGS=tiny.devices(devices), JAX_PLATFORMS="cpu")
    environment["PYTHONPATH"] += f":{tiny.ROOT / 'tests'}"
    done = subprocess.run([sys.executable, "-c", PROGRAM, path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.load(path)


@pytest.mark.slow
def test_four_devices_imagine_what_one_does(tmp_path):
    """Six trajectories, which four devices do not divide; a full window is cut on the way."""
    one, four = _run(tmp_path / "one.npz", 1), _run(tmp_path / "four.npz", 4)
    assert four["devices"] == 4 and not four["whole"] and one["devices"] == 1
    for name in ("frames", "closed"):
        assert one[name].shape == (6, 7, 16, 16, 3)
        # Sums of fewer rows are taken in another order, and a pixel between two levels falls to either.
        apart = np.abs(four[name].astype(int) - one[name])
        assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
    np.testing.assert_allclose(four["uncertainty"], one["uncertainty"], rtol=1e-4)
    # A reward is read off two frames: where such a pixel lies in one of them, it is another one.
    alike = (four["frames"] == one["frames"]).all(axis=(2, 3, 4))
    alike[:, 1:] &= alike[:, :-1].copy()
    assert alike.mean() > 0.8
    np.testing.assert_allclose(four["rewards"][alike], one["rewards"][alike], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(four["rewards"], one["rewards"], rtol=1e-2, atol=1e-2)
