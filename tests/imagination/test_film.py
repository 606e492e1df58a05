"""`whale imagine` on a tiny world: what is given, what is done, and what is written."""

import dataclasses
import io

import av
import numpy as np
import pytest
import tiny
from PIL import Image

from whale_jax.base.errors import WhaleError
from whale_jax.cli.imagine import run_imagine
from whale_jax.cli.whale import build_parser
from whale_jax.data.store.storage import write_episode
from whale_jax.imagination import film
from whale_jax.imagination.world import Imagination

HORIZON = 4


@pytest.fixture(scope="module")
def episode_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recorded") / "episode.npz"
    write_episode(path, tiny.episode(0, source="metaworld"))
    return path


@pytest.fixture
def imagine(parallel_world, episode_file, tmp_path, monkeypatch):
    """Runs the command on the tiny world; gives what it has written. `out` is the file's name."""
    monkeypatch.setattr("whale_jax.imagination.loading.load", lambda directory: parallel_world)

    def run(*arguments, out="film.png", given=f"--episode={episode_file}"):
        path = tmp_path / out
        two = [] if given.startswith("--image") or any("--context" in each for each in arguments) else ["--context=2"]
        options = build_parser().parse_args(["imagine", "--checkpoint=C", given, f"--out={path}", *two, *arguments])
        run_imagine(options)
        return path.read_bytes()

    return run


def mp4(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def png(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_recorded_actions_stand_beside_the_real_film(parallel_world, episode_file):
    scene = film.episode_scene(episode_file, start=3, context=2)
    actions = film.choose_actions(parallel_world.action_spec, scene, horizon=HORIZON)
    got = film.imagine_film(parallel_world, scene, actions, "entropy")
    episode = tiny.episode(0)
    np.testing.assert_array_equal(got.films["real"], episode.frames[3:9])
    np.testing.assert_array_equal(actions, episode.actions[4:8])
    future = parallel_world.imagine(episode.frames[None, 3:5], episode.actions[None, 3:8], uncertainty="entropy")
    np.testing.assert_array_equal(got.films["imagined"], np.concatenate([episode.frames[3:5], future.frames[0]]))
    assert got.context == 2 and np.isnan(got.uncertainty[:2]).all()
    np.testing.assert_allclose(got.uncertainty[2:], future.uncertainty[0], rtol=1e-6)


def test_other_actions_stand_beside_a_recording_that_is_long_enough(parallel_world, episode_file):
    for start, names in ((7, ["recorded", "imagined"]), (8, ["imagined"])):
        scene = film.episode_scene(episode_file, start=start, context=2)
        actions = film.choose_actions(parallel_world.action_spec, scene, action="1,0,0,0", horizon=HORIZON)
        got = film.imagine_film(parallel_world, scene, actions, None)
        assert list(got.films) == names and got.uncertainty is None
        assert all(len(each) == 2 + HORIZON for each in got.films.values())
    scene = film.episode_scene(episode_file, start=7, context=2)
    same = film.imagine_film(parallel_world, scene, scene.actions.copy(), None)
    assert list(same.films) == ["real", "imagined"], (
        "the recorded actions lead to the real film, wherever they are from"
    )


def test_estimates_of_another_scale_are_left_out(parallel_world, episode_file, monkeypatch):
    """Retracing falls back on the entropy where no frame lies far enough back."""
    future = Imagination(
        frames=np.zeros((1, 3, 16, 16, 3), np.uint8),
        actions=np.zeros((1, 3, 4)),
        rewards=None,
        uncertainty=np.array([[4.0, 0.2, 0.1]]),
        parts={"branches": np.array([[0, 1, 2]])},
        notes=("one",),
    )
    monkeypatch.setattr(type(parallel_world), "imagine", lambda *args, **more: future)
    got = film.imagine_film(parallel_world, film.episode_scene(episode_file, context=1), np.zeros((3, 4)))
    np.testing.assert_allclose(got.uncertainty, [np.nan, np.nan, 0.2, 0.1], rtol=1e-6)
    assert got.notes == ("one",) and got.estimate == "entropy, nats"  # as frames are too small to retrace


def test_an_episode_of_other_actions(parallel_world, imagine, tmp_path):
    spec = parallel_world.action_spec.to_json() | {"rate_hz": 10 * parallel_world.action_spec.rate_hz}
    write_episode(tmp_path / "other.npz", tiny.episode(0, action_spec=spec))
    with pytest.raises(WhaleError, match="other.npz from frame 0 and the checkpoint disagree .* rate_hz"):
        imagine("--horizon=2", given=f"--episode={tmp_path / 'other.npz'}")


def test_directions_share_the_first_frame_and_differ_after(parallel_world, episode_file):
    scene = film.episode_scene(episode_file, start=2, context=2)
    got = film.imagine_directions(parallel_world, scene, HORIZON)
    words = ["left (x -1)", "right (x +1)", "down (z -1)", "up (z +1)", "open (gripper -1)", "close (gripper +1)"]
    assert list(got.films) == words and got.context == 2
    films = np.stack(list(got.films.values()))
    assert films.shape == (6, 6, 16, 16, 3)
    assert (films[:, :2] == scene.given).all()
    assert len({each.tobytes() for each in films[:, 2:]}) == 6


def test_a_recording_of_another_camera_has_no_words(tmp_path):
    write_episode(tmp_path / "e.npz", tiny.episode(0, source="metaworld"))
    assert film.episode_scene(tmp_path / "e.npz").words
    episode = tiny.episode(0, source="metaworld")
    write_episode(tmp_path / "e.npz", dataclasses.replace(episode, metadata=episode.metadata | {"camera": "topview"}))
    assert not film.episode_scene(tmp_path / "e.npz").words


def test_the_film_shows_the_curve_only_when_it_is_wanted(imagine):
    with_curve = mp4(imagine("--horizon=4", "--uncertainty=entropy", out="film.mp4"))
    without = mp4(imagine("--horizon=4", "--uncertainty=none", out="film.mp4"))
    assert len(with_curve) == len(without) == 6
    assert with_curve.shape[1] > without.shape[1] + 60 and with_curve.shape[2] == without.shape[2]


def test_typed_read_and_held_actions_make_the_same_stills(imagine, tmp_path):
    held = imagine("--action=1,0,-1,0", "--horizon=4", "--uncertainty=none")
    np.savetxt(tmp_path / "a.csv", np.tile([1, 0, -1, 0], (9, 1)), delimiter=",")
    assert held == imagine("--actions=1,0,-1,0*2; 1,0,-1,0*2", "--uncertainty=none")
    assert held == imagine(f"--actions={tmp_path / 'a.csv'}", "--horizon=4", "--uncertainty=none")
    assert held != imagine("--random=1", "--horizon=4", "--uncertainty=none")


def test_the_strip_has_six_rows_that_begin_alike(imagine):
    sheet = png(imagine("--strip", "--horizon=4", "--start=1"))
    first = np.repeat(np.repeat(tiny.episode(0).frames[2], 8, axis=0), 8, axis=1)
    left = next(x for x in range(sheet.shape[1] - 128) if (sheet[30:60, x : x + 128] == first[:30]).all())
    top = next(y for y in range(60) if (sheet[y : y + 128, left : left + 128] == first).all())
    rows = [sheet[top + 132 * i :][:128] for i in range(6)]
    assert all((row[:, left : left + 128] == first).all() for row in rows)
    assert len({row[:, left + 132 :].tobytes() for row in rows}) == 6
    assert sheet.shape[:2] == (top + 6 * 132, left + 5 * 132)


def test_the_strip_plays_in_a_grid(imagine):
    frames = mp4(imagine("--strip", "--horizon=4", out="strip.mp4"))
    assert len(frames) == 6 and frames.shape[2] == 3 * 256 + 2 * 8 and frames.shape[1] > 2 * 256


def test_a_picture_is_enough(imagine, tmp_path):
    Image.fromarray(tiny.episode(0).frames[0]).save(tmp_path / "first.png")
    frames = mp4(
        imagine(
            "--action=1,0,0,0",
            "--horizon=4",
            "--uncertainty=entropy",
            out="f.mp4",
            given=f"--image={tmp_path}/first.png",
        )
    )
    assert len(frames) == 5 and frames.shape[2] == 256


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--action=1,0,0,0", "--random=1"], "--random: not allowed with argument --action"),
        (["--strip", "--actions=1,0,0,0"], "--actions: not allowed with argument --strip"),
        (["--image=a.png"], "--image: not allowed with argument --episode"),
        (["--uncertainty=retrace"], "did you mean retracing"),
        (["--strip", "--uncertainty=entropy"], "--strip shows no uncertainty"),
        (["--action=0,0,0,7"], "--action: action 'gripper' .* is 7, outside -1 to 1"),
        (["--action=0,0"], "--action: actions have shape .* 4 dimensions"),
        (["--action=1,0,0,0*2"], "--action holds a single one"),
        (["--action=left"], "'left', is not numbers"),
        (["--actions=1,0,0,0*4;0,0,0,-3"], "'gripper' .* at step 4 is -3"),
        (["--actions=1,0,0,0*4", "--horizon=5"], "gives 4 actions; --horizon 5"),
        (["--actions=nowhere.npy"], "There is no file nowhere.npy"),
        (["--random=-1"], "seed of random actions"),
        (["--horizon=12"], "11 actions are recorded .* 12 imagined ones do not fit"),
        (["--horizon=0"], "--horizon is 0"),
        (["--strip", "--horizon=0"], "--horizon is 0"),
        (["--start=12"], "has 13 frames; 2 given ones from frame 12 do not fit"),
        (["--context=0"], "0 given ones"),
        (["--episode=nowhere.npz"], "no episode nowhere.npz"),
        (["--out=film.avi"], "ends in '.avi'"),
        (["--out=film"], "ends in ''"),
        (["--out=/dev/null/film.mp4"], "/dev/null is no directory"),
        (["--horizon=4", "--uncertainty=retracing"], "retrace at most 1"),
    ],
)
def test_what_cannot_be_imagined_is_said_and_nothing_is_written(imagine, tmp_path, arguments, says):
    with pytest.raises(WhaleError, match=says) as error:
        imagine(*arguments)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("size", "arguments", "says"),
    [
        (24, ["--random=1"], "24 x 24 pixels and this model takes 16 x 16"),
        (16, [], "0 actions are recorded"),
        (16, ["--random=1", "--context=2"], "leave --start and --context out"),
        (0, ["--random=1"], "cannot be read as a picture"),
        (-1, ["--random=1"], "There is no picture"),
    ],
)
def test_pictures_that_do_not_fit(imagine, tmp_path, size, arguments, says):
    path = tmp_path / "first.png"
    if size > 0:
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(path)
    elif size == 0:
        path.write_bytes(b"no picture")
    with pytest.raises(WhaleError, match=says):
        imagine(*arguments, given=f"--image={path}")


def test_the_output_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr("whale_jax.imagination.loading.load", lambda directory: pytest.fail("the checkpoint was read"))
    for out in ("film.webp", "."):
        options = build_parser().parse_args(
            ["imagine", "--checkpoint=C", "--episode=e.npz", f"--out={tmp_path / out}", "--random=0"]
        )
        with pytest.raises(WhaleError, match="ends in|is a directory"):
            run_imagine(options)
