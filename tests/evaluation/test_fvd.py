import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.video import fvd
from whale_jax.nn import i3d

FILM = np.zeros((2, 10, 16, 16, 3), np.uint8)


@pytest.fixture
def passes(monkeypatch):
    """What went through the network: the shapes of its batches. The network is replaced by three means."""
    shapes = []

    def logits(params, frames):
        shapes.append(frames.shape)
        return np.pad(frames.mean((1, 2, 3)), ((0, 0), (0, i3d.CLASSES - 3)))

    monkeypatch.setattr(fvd, "_logits", logits)
    return shapes


def films(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 10, 16, 16, 3), np.uint8)


def cloud(mean: np.ndarray, covariance: np.ndarray, count: int = 50, seed: int = 0) -> np.ndarray:
    """Points (count, D) whose mean and covariance, divided by count - 1, are exactly these."""
    points = np.random.default_rng(seed).normal(size=(count, len(mean)))
    points -= points.mean(0)
    white = points @ np.linalg.inv(np.linalg.cholesky(np.cov(points.T))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def test_black_against_white_is_what_tensorflow_says():
    """All zero against all one on the scale [0, 1], so uint8 0 against 255; uint8 0 against 1 would be 0.02."""
    black = np.zeros((8, 30, 64, 64, 3), np.uint8)
    assert fvd.fvd(black, 255 - black) == pytest.approx(151.39, abs=0.01)


def test_gaussians_with_the_same_axes():
    """Hand-worked: |μ|² = 1 + 4, and (2 - 1)² + (3 - 5)² for the standard deviations."""
    a = cloud(np.array([0.0, 0.0]), np.diag([4.0, 9.0]))
    b = cloud(np.array([1.0, -2.0]), np.diag([1.0, 25.0]), count=70, seed=1)
    assert fvd.frechet(a, b) == pytest.approx(5.0 + 1.0 + 4.0)


def test_gaussians_with_different_axes():
    """Hand-worked: the root of a 2 x 2 matrix M has the trace √(tr M + 2 √det M); M = ΣaΣb, tr M = 8, det M = 9."""
    a = cloud(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))
    b = cloud(np.zeros(2), np.array([[3.0, 0.0], [0.0, 1.0]]), seed=1)
    trace = np.sqrt(8.0 + 2.0 * np.sqrt(9.0))
    assert fvd.frechet(a, b) == pytest.approx(4.0 + 4.0 - 2.0 * trace)


def test_few_clips_of_many_features():
    """A shift changes means alone, a scale the standard deviations by its factor: no singular matrix blurs them."""
    a = np.random.default_rng(0).normal(size=(6, 400)) * np.geomspace(1e-3, 1e3, 400)
    shift = np.linspace(-1, 1, 400)
    variance = a.var(0, ddof=1).sum()
    assert fvd.frechet(a, a + shift) == pytest.approx(np.sum(shift**2), rel=1e-6)
    assert fvd.frechet(a - a.mean(0), 3 * (a - a.mean(0))) == pytest.approx(4 * variance)
    unrelated = np.zeros((6, 400))
    assert fvd.frechet(a - a.mean(0), unrelated) == pytest.approx(variance)


def test_distances_are_symmetric_and_nothing_for_equal_sets():
    a, b = (np.random.default_rng(i).normal(size=(8 + i, 400)) for i in range(2))
    assert fvd.frechet(a, b) == pytest.approx(fvd.frechet(b, a)) and fvd.frechet(a, b) > 1
    assert fvd.frechet(a, a[::-1]) == pytest.approx(0, abs=1e-9)


def test_films_pass_in_batches_of_one_size_and_equal_films_once(passes):
    clips = films(5)
    messages = []
    values = fvd.features(np.concatenate([clips, clips[1:2]]), batch=2, say=messages.append, name="real")
    assert values.shape == (6, i3d.CLASSES) and passes == [(2, 10, 16, 16, 3)] * 3
    np.testing.assert_allclose(values[:5, :3], clips.mean((1, 2, 3)) / 255, rtol=1e-5)
    np.testing.assert_array_equal(values[5], values[1])
    assert [m.partition(",")[0] for m in messages] == [f"FVD: {n} of 5 clips (real)" for n in (2, 4, 5)]
    assert messages[-1].endswith(", 0 s left")


def test_features_are_kept_by_content(passes, tmp_path, monkeypatch):
    cache = tmp_path / "new" / "fvd"
    clips = films(3)
    values = fvd.features(clips, cache=cache)
    np.testing.assert_array_equal(fvd.features(clips[::-1], cache=cache), values[::-1])
    assert len(passes) == 1 and len(list(cache.iterdir())) == 3

    changed = clips.copy()
    changed[1, 4, 3, 2, 0] ^= 1
    fvd.features(changed, cache=cache)
    assert passes[1:] == [(1, 10, 16, 16, 3)]

    fvd.features((clips / 255).astype(np.float32), cache=cache)
    fvd.features(clips.reshape(3, 10, 8, 32, 3), cache=cache)
    assert len(passes) == 4

    monkeypatch.setattr(i3d, "digest", lambda: "another network")
    fvd.features(clips, cache=cache)
    assert len(passes) == 5


def test_a_damaged_file_is_computed_anew(passes, tmp_path):
    clips = films(1)
    values = fvd.features(clips, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    for damage in (b"", file.read_bytes()[:-1], b"\x80\x04N."):
        file.write_bytes(damage)
        np.testing.assert_array_equal(fvd.features(clips, cache=tmp_path), values)
    assert len(passes) == 4 and list(tmp_path.iterdir()) == [file]


def test_fvd_is_the_distance_of_features(passes, tmp_path):
    real, imagined = films(4), films(3, seed=1) // 2
    value = fvd.fvd(real, imagined, cache=tmp_path)
    assert value == fvd.frechet(fvd.features(real), fvd.features(imagined)) and value > 0.1
    assert fvd.fvd(real / 255, imagined) == pytest.approx(value, rel=1e-4)
    assert fvd.features(real[:0]).shape == (0, i3d.CLASSES)


@pytest.mark.parametrize(
    ("real", "imagined", "says"),
    [
        (FILM[:, :9], FILM[:, :9], r"at least 10 frames a clip, these have 9 \(real\)"),
        (FILM, FILM[:, :7], r"these have 7 \(imagined\)"),
        (np.repeat(FILM, 2, axis=1), FILM, "real films have 20 frames and the imagined ones 10"),
        (FILM[:1], FILM, "at least 2 clips of each kind, here are 1 real and 2 imagined"),
        (FILM, FILM[:0], "2 real and 0 imagined"),
        (FILM[0], FILM, r"real must be films of shape \(B, T, H, W, 3\)"),
        (FILM, FILM[:, :, :0], "imagined frames have no pixels"),
        (FILM, FILM.astype(np.int64), "int64"),
        (FILM, FILM + 1.5, "imagined frames hold values from 1.5"),
    ],
)
def test_what_is_no_pair_of_film_sets_is_refused_before_any_work(passes, real, imagined, says):
    with pytest.raises(WhaleError, match=says):
        fvd.fvd(real, imagined)
    assert not passes


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"\(2, 3\) and \(2, 4\)"),
        (np.zeros((1, 3)), np.zeros((2, 3)), "here are 1 and 2"),
        (np.zeros((2, 3)), np.full((2, 3), np.nan), "NaN or infinity"),
    ],
)
def test_bad_features_are_refused(a, b, says):
    with pytest.raises(WhaleError, match=says):
        fvd.frechet(a, b)


def test_a_collector_gives_the_fvd_of_everything_it_was_given(passes):
    real, imagined = films(5), films(5, seed=1)
    collector = fvd.Collector()
    collector.add(real[:2], model=imagined[:2])
    collector.add(real[2:], model=imagined[2:])
    found = collector.report()
    assert found["model"] == pytest.approx(fvd.fvd(real, imagined)) and found["outcome"] == "ok"
    assert (found["clips"], found["frames"], len(found["sha256"])) == (5, 10, 64)


def test_a_collector_says_why_there_is_no_fvd(passes):
    short, lonely = fvd.Collector(), fvd.Collector()
    short.add(films(3)[:, :9], model=films(3)[:, :9])
    lonely.add(films(1), model=films(1))
    assert "at least 10 frames a clip, these have 9" in short.report()["outcome"]
    assert "at least 2 clips" in lonely.report()["outcome"]
