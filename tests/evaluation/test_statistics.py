"""Statistics of uncertainty against SciPy and against values worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation import statistics


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    errors = rng.gamma(2.0, size=(40, 8))
    return errors, errors * rng.gamma(4.0, size=errors.shape)


def test_coefficients_are_those_of_scipy_also_with_ties(pair):
    errors, estimates = pair
    for estimate in (estimates, np.round(estimates)):
        flat = estimate.ravel(), errors.ravel()
        assert statistics.pearson(*flat) == pytest.approx(stats.pearsonr(*flat)[0])
        found = statistics.correlations(errors, estimate, statistics.resamples(len(errors), 1, seed=0))
        assert found["pooled"][0] == pytest.approx(stats.pearsonr(*flat)[0])
        assert found["spearman"][0] == pytest.approx(stats.spearmanr(*flat)[0])
    assert np.isnan(statistics.pearson(np.ones(5), np.arange(5)))


def test_intervals_hold_the_value_and_narrow_with_more_trajectories(pair):
    errors, estimates = pair
    widths = []
    for count in (10, 40):
        picks = statistics.resamples(count, 300, seed=1)
        found = statistics.correlations(errors[:count], estimates[:count], picks)
        for name in statistics.COEFFICIENTS:
            value, low, high = statistics.interval(found[name])
            assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0]
    assert statistics.interval(np.array([np.nan, 1.0])) == [None, None, None]


def test_whole_trajectories_are_drawn():
    """Steps that repeat each other add no certainty: the interval is that of the trajectories."""
    rng = np.random.default_rng(3)
    one, other = rng.normal(size=(2, 30, 1))
    picks = statistics.resamples(30, 400, seed=0)
    single = statistics.interval(statistics.correlations(one, other, picks)["pooled"])
    repeated = statistics.correlations(np.repeat(one, 8, 1), np.repeat(other, 8, 1), picks)["pooled"]
    np.testing.assert_allclose(statistics.interval(repeated), single, rtol=1e-6)


def test_levels_are_told_apart(pair):
    """An estimate may know the step alone, the trajectory alone, or what differs within a step."""
    rng = np.random.default_rng(1)
    step, trajectory = np.broadcast_to(np.arange(8.0), (30, 8)), np.broadcast_to(rng.normal(size=(30, 1)), (30, 8))
    errors = step + 3 * trajectory + rng.normal(size=(30, 8))
    picks = statistics.resamples(30, 50, seed=0)
    values = {
        name: {c: statistics.interval(found)[0] for c, found in statistics.correlations(errors, x, picks).items()}
        for name, x in {"step": step, "tenth": step / 10, "trajectory": trajectory, "mixed": pair[1][:30]}.items()
    }
    for name in ("step", "tenth"):
        assert values[name]["within"] is None and values[name]["trajectory"] is None, "never 0, NaN or rounding"
        assert 0.3 < values[name]["pooled"] < 0.9
    assert values["trajectory"]["within"] > values["trajectory"]["pooled"] and values["trajectory"]["trajectory"] > 0.95
    each = [stats.pearsonr(pair[1][:30, t], errors[:, t])[0] for t in range(8)]
    assert values["mixed"]["within"] == pytest.approx(np.mean(each))
    means = stats.pearsonr(pair[1][:30].mean(1), errors.mean(1))[0]
    assert values["mixed"]["trajectory"] == pytest.approx(means)


def test_steps_in_which_an_estimate_is_constant_are_left_out(pair):
    errors, estimates = pair[0], pair[1].copy()
    estimates[:, 2:] = 0.1
    found = statistics.correlations(errors, estimates, statistics.resamples(40, 20, seed=0))
    each = [stats.pearsonr(estimates[:, t], errors[:, t])[0] for t in range(2)]
    assert found["within"][0] == pytest.approx(np.mean(each))


def seeds(pair, count: int):
    """Steps of several model seeds on the same clips of two tasks, one larger than the other."""
    rng, errors, found = np.random.default_rng(5), pair[0], []
    for _ in range(count):
        tasks = {}
        for task, size in (("a", 40), ("b", 12)):
            e = errors[:size] * rng.gamma(9.0, size=(size, 8))
            x = e * rng.gamma(4.0, size=e.shape)
            tasks[task] = statistics.Steps(e, {"x": x, "y": x * rng.gamma(3.0, size=e.shape)})
        found.append(tasks)
    return found


def test_seeds_and_tasks_have_equal_weight_and_clips_are_drawn_once_for_all_seeds(pair):
    models = seeds(pair, 3)
    found = statistics.compare(models, draws=200, seed=4)
    by_hand = [
        [[stats.pearsonr(m[task].estimates[n].ravel(), m[task].errors.ravel())[0] for task in m] for m in models]
        for n in ("x", "y")
    ]
    assert found["mean"]["x"]["pooled"][0] == pytest.approx(np.mean(by_hand[0]))
    value, low, high = found["differences"]["x"]["y"]["pooled"]
    assert value == pytest.approx(np.mean(by_hand[0]) - np.mean(by_hand[1])) and low < value < high
    assert found["tasks"]["b"]["y"]["pooled"][0] == pytest.approx(np.mean(by_hand[1], axis=0)[1])
    # Draws that were not shared would average out over seeds that are all the same.
    same, one = (statistics.compare(models[:1] * n, draws=200, seed=4) for n in (5, 1))
    assert same["differences"]["x"]["y"]["within"] == pytest.approx(one["differences"]["x"]["y"]["within"])


def test_models_of_other_clips_are_not_compared(pair):
    models = seeds(pair, 2)
    del models[1]["b"]
    with pytest.raises(WhaleError, match="same clips"):
        statistics.compare(models)


def test_risk_by_coverage_by_hand():
    errors, trust = np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[4.0, 2.0], [1.0, 3.0]])
    assert statistics.risk_coverage(errors, trust, np.array([0.1, 0.25, 0.5, 0.75, 1.0])) == [3, 3, 2, 2, 2.5]
    assert statistics.risk_coverage(errors, errors, np.array([0.5, 1.0])) == [1.5, 2.5]


def test_calibration_by_hand():
    errors, trust = np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[4.0, 2.0], [1.0, 3.0]])
    assert statistics.calibration(errors, trust, bins=2) == {"estimate": [1.5, 3.5], "error": [2.0, 3.0]}
    assert len(statistics.calibration(errors, trust, bins=10)["error"]) == 4
