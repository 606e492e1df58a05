"""Statistics of uncertainty against SciPy and against values worked out by hand."""

import numpy as np
import pytest
from scipy import stats

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
        assert statistics.spearman(*flat) == pytest.approx(stats.spearmanr(*flat)[0])
    assert statistics.spearman(np.exp(errors), errors) == pytest.approx(1.0)
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
    single = statistics.interval(statistics.correlations(one, other, picks)["pearson"])
    repeated = statistics.correlations(np.repeat(one, 8, 1), np.repeat(other, 8, 1), picks)["pearson"]
    np.testing.assert_allclose(statistics.interval(repeated), single, rtol=1e-6)


def test_risk_by_coverage_by_hand():
    errors, trust = np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[4.0, 2.0], [1.0, 3.0]])
    assert statistics.risk_coverage(errors, trust, np.array([0.1, 0.25, 0.5, 0.75, 1.0])) == [3, 3, 2, 2, 2.5]
    assert statistics.risk_coverage(errors, errors, np.array([0.5, 1.0])) == [1.5, 2.5]


def test_calibration_by_hand():
    errors, trust = np.array([[4.0, 1.0], [3.0, 2.0]]), np.array([[4.0, 2.0], [1.0, 3.0]])
    assert statistics.calibration(errors, trust, bins=2) == {"estimate": [1.5, 3.5], "error": [2.0, 3.0]}
    assert len(statistics.calibration(errors, trust, bins=10)["error"]) == 4
