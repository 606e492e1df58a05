"""Frames: upright, not mirrored, cheap, and a sentence where nothing can render."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.data.metaworld import rendering

pytest.importorskip("metaworld")

from whale_jax.data.metaworld import simulator as metaworld

GOLDEN = Path(__file__).parent / "golden"
CAMERAS = ("corner", "corner2", "corner3", "topview")


@pytest.fixture(scope="module")
def env():
    env = metaworld.make_env("plate-slide", seed=3)
    env.reset()
    yield env
    env.close()


def _render(env, camera: str, size: int = 64, **kwargs) -> np.ndarray:
    renderer = rendering.FrameRenderer(env.model, camera, size, **kwargs)
    frame = renderer.render(env.data)
    renderer.close()
    return frame


@pytest.mark.parametrize("camera", CAMERAS)
def test_golden_frames(env, camera):
    """The stored picture was checked by eye: table under the arm. Other GLs differ by little."""
    golden = np.asarray(Image.open(GOLDEN / f"plate-slide-{camera}.png")).astype(float)
    frame = _render(env, camera).astype(float)
    assert np.abs(frame - golden).mean() < 2.0
    for wrong in (frame[::-1], frame[:, ::-1], frame[::-1, ::-1], frame[..., ::-1]):
        assert np.abs(wrong - golden).mean() > 4.0


def _finger(frame: np.ndarray) -> np.ndarray:
    """(column, row) of the gripper's cyan finger."""
    r, g, b = frame.astype(int).transpose(2, 0, 1)
    rows, columns = np.nonzero((g > 120) & (b > 120) & (r < 90))
    assert len(rows) > 5
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("camera", ["corner", "corner2"])
def test_up_is_up_and_left_is_left(camera):
    """The finger moves as perspective says for a camera held upright: not flipped, not mirrored."""
    env = metaworld.make_env("reach", seed=0)
    env.reset()
    renderer = rendering.FrameRenderer(env.model, camera, 256)
    camera_id = env.model.camera(camera).id
    position, axes = env.data.cam_xpos[camera_id], env.data.cam_xmat[camera_id].reshape(3, 3)
    right = np.cross(-axes[:, 2], [0.0, 0.0, 1.0])

    def side() -> float:
        ray = env.data.body("leftpad").xpos - position
        return ray @ right / (ray @ -axes[:, 2])

    for action in ([0, 0, 1, -1], [1, 0, 0, -1], [-1, 0, 0, -1], [0, 1, 0, -1]):
        finger, before = _finger(renderer.render(env.data)), side()
        for _ in range(12):
            env.step(np.array(action, np.float32))
        moved = _finger(renderer.render(env.data)) - finger
        if action[2]:
            assert moved[1] < -6
        elif abs(side() - before) > 0.03:
            assert abs(moved[0]) > 2 and np.sign(moved[0]) == np.sign(side() - before)
    renderer.close()
    env.close()


def test_closing_one_renderer_leaves_another_working(env):
    kept = rendering.FrameRenderer(env.model, "corner", 32)
    before = kept.render(env.data)
    other = metaworld.make_env("reach", seed=0)
    other.reset()
    closing = rendering.FrameRenderer(other.model, "topview", 32)
    kept.render(env.data)
    closing.close()
    env.step(np.ones(4, np.float32))
    env.step(np.ones(4, np.float32))
    moved = kept.render(env.data)
    kept.close()
    other.close()
    assert (moved != before).any() and moved.any()
    np.testing.assert_array_equal(moved, _render(env, "corner", 32))


def test_merging_vertices_hardly_changes_the_frame_and_leaves_the_model_alone(env):
    faces, vertices = env.model.mesh_facenum.copy(), env.model.mesh_vert.copy()
    frame = _render(env, "corner").astype(float)
    simple = rendering.simplify_meshes(env.model, 0.004)
    assert simple.mesh_facenum.sum() < 0.5 * faces.sum()
    np.testing.assert_array_equal(env.model.mesh_facenum, faces)
    np.testing.assert_array_equal(env.model.mesh_vert, vertices)
    fine = _render(env, "corner", 512, oversample=2)
    fine = rendering.area_reduce(fine, 8).astype(float)
    assert 10 * np.log10(255**2 / np.mean((frame - fine) ** 2)) > 37


def test_area_reduce_is_the_rounded_mean():
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
    mean = image.reshape(3, 4, 5, 4, 3).astype(float).mean((1, 3))
    np.testing.assert_array_equal(rendering.area_reduce(image, 4), np.floor(mean + 0.5))
    np.testing.assert_array_equal(rendering.area_reduce(np.full((8, 8, 3), 255, np.uint8), 8), 255)


def test_unknown_camera_names_the_near_ones(env):
    with pytest.raises(WhaleError, match="did you mean corner"):
        rendering.FrameRenderer(env.model, "cornr2", 64)


def _command(**env) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "whale_jax.data.metaworld.rendering"]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


def test_command_prints_a_gl_that_works():
    done = _command()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("egl", "osmesa", os.environ.get("MUJOCO_GL"))


def test_a_value_that_does_not_work_is_replaced():
    done = _command(MUJOCO_GL="nonsense")
    assert done.returncode == 0 and done.stdout.strip() in ("egl", "osmesa")


@pytest.mark.skipif(sys.platform != "linux", reason="hides the libraries with LD_LIBRARY_PATH")
def test_without_any_gl_the_command_says_what_to_install(tmp_path):
    """Broken files stand before the real libraries on the loader's path."""
    for name in ("libEGL.so.1", "libEGL.so", "libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        (tmp_path / name).write_bytes(b"")
    done = _command(LD_LIBRARY_PATH=str(tmp_path), MUJOCO_GL="")
    assert done.returncode == 2 and done.stdout == ""
    assert "apt-get install -y libosmesa6" in done.stderr and "libegl1" in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
