"""Measures of agreement: against scipy, by hand, and whatever the order of the units."""

import itertools

import numpy as np
import pytest
from scipy import stats

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.statistics import interval
from whale_jax.evaluation.value import ranking

TRUE = np.array([1.0, 4.0, 2.0, 8.0, 5.0, 5.0])
ESTIMATED = np.array([2.0, 3.0, 3.0, 6.0, 9.0, 1.0])


def agreement(true, estimated, names=(), draws=100):
    """What `score` writes of one task's units."""
    options = {"draws": draws, "seed": 0}
    found, floors = ranking.samples(true, estimated, **options), ranking.floors(true, estimated, **options)
    leverage = ranking.leverage(true, estimated, list(names) or [str(i) for i in range(len(true))])
    return {
        name: {"interval": interval(found[name]), "floor": interval(floors[name]), "leverage": leverage[name]}
        for name in ranking.MEASURES
    }


def test_correlations_agree_with_scipy():
    rng = np.random.default_rng(0)
    for ties in (False, True):
        a, b = rng.normal(size=(2, 40))
        if ties:
            a, b = a.round(), (a + b).round()
        assert ranking.pearson(a, b) == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-12)
        assert ranking.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert ranking.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_by_hand():
    assert ranking.value_gap(TRUE, ESTIMATED) == pytest.approx((1 + 1 + 1 + 2 + 4 + 4) / 6)
    assert ranking.regret_at_k(TRUE, ESTIMATED, 1) == 3.0
    assert ranking.regret_at_k(TRUE, ESTIMATED, 2) == 0.0
    assert ranking.top_1(TRUE, ESTIMATED) == 0.0 and ranking.top_1(TRUE, TRUE) == 1.0
    # Units 0..2, truth 1 2 4, estimates 3 1 2: 0 is put above both others, 1 and 2 are in order.
    assert ranking.mmrv([1, 2, 4], [3, 1, 2]) == pytest.approx((3 + 1 + 3) / 3)


def test_mmrv_tells_truth_from_estimate():
    true, estimated = [0.0, 1.0, 10.0], [1.0, 0.0, 2.0]
    assert ranking.mmrv(true, estimated) == pytest.approx(2 / 3)
    assert ranking.mmrv(np.multiply(true, 2), estimated) == pytest.approx(4 / 3)
    assert ranking.mmrv(true, np.multiply(estimated, 2)) == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", range(1, 8))
def test_regret_with_ties_is_the_mean_over_all_choices(k):
    true = np.array([3.0, 1.0, 7.0, 2.0, 9.0, 4.0])
    estimated = np.array([5.0, 5.0, 5.0, 8.0, 5.0, 1.0])
    regrets = []
    for order in itertools.permutations(range(6)):
        picked = sorted(order, key=lambda i: -estimated[i])[:k]
        regrets.append(true.max() - true[picked].max())
    assert ranking.regret_at_k(true, estimated, k) == pytest.approx(np.mean(regrets))


def test_the_order_of_the_units_does_not_matter():
    order = np.random.default_rng(1).permutation(len(TRUE))
    for name, measure in ranking.MEASURES.items():
        assert measure(TRUE[order], ESTIMATED[order]) == pytest.approx(measure(TRUE, ESTIMATED)), name


def test_perfect_and_reversed_estimates():
    for name, best, worst in (("rank_correlation", 1, -1), ("kendall", 1, -1), ("mmrv", 0, None)):
        measure = ranking.MEASURES[name]
        assert measure(TRUE[:5], TRUE[:5]) == pytest.approx(best)
        if worst is not None:
            assert measure(TRUE[:5], -TRUE[:5]) == pytest.approx(worst)


def test_constant_values_leave_correlations_undefined_and_the_rest_computed():
    report = agreement(np.ones(5), np.arange(5.0), draws=20)
    assert report["rank_correlation"]["interval"] == [None, None, None]
    assert report["rank_correlation"]["leverage"] is None
    assert report["regret_at_1"]["interval"][0] == 0.0 and report["value_gap"]["interval"][0] == pytest.approx(6 / 5)


def test_normalised_values_span_the_true_range_and_the_gap_alone_is_clipped():
    true, estimated = ranking.normalise([10.0, 30.0, 20.0], [0.0, 100.0, 25.0])
    np.testing.assert_allclose(true, [0, 1, 0.5])
    np.testing.assert_allclose(estimated, [-0.5, 4.5, 0.75])
    report = agreement(np.array([10.0, 30.0, 20.0]), np.array([0.0, 100.0, 200.0]), draws=10)
    assert report["value_gap"]["interval"][0] == pytest.approx((0.5 + 1 + 1.5) / 3)
    assert report["rank_correlation"]["interval"][0] == pytest.approx(0.5)


def test_agreement_says_how_far_to_believe_it():
    rng = np.random.default_rng(0)
    true = np.linspace(0, 1, 12)[:, None] + 0.3 * rng.normal(size=(12, 10))
    good = agreement(true, true + 0.05 * rng.normal(size=true.shape), draws=200)["rank_correlation"]
    value, low, high = good["interval"]
    assert low <= value <= high and low > good["floor"][2] > 0 > good["floor"][1]
    assert abs(good["floor"][0]) < 0.1


def test_leverage_names_the_unit_that_everything_hangs_on():
    true, estimated = np.array([0.0, 0.1, 0.2, 10.0]), np.array([0.2, 0.1, 0.0, 10.0])
    low, high, unit = agreement(true, estimated, names=list("abcd"), draws=20)["pearson"]["leverage"]
    assert unit == "d" and low == pytest.approx(-1.0) and high > 0.99


@pytest.mark.parametrize(
    ("true", "estimated", "says"),
    [
        ([1.0, np.nan], [1.0, 2.0], "NaN or infinite"),
        ([1.0, 2.0], [1.0], "two arrays"),
        ([1.0], [1.0], "two units or more"),
    ],
)
def test_values_that_cannot_be_compared(true, estimated, says):
    with pytest.raises(WhaleError, match=says):
        agreement(np.array(true), np.array(estimated))
    with pytest.raises(WhaleError, match="at least one"):
        ranking.regret_at_k(TRUE, ESTIMATED, 0)


def test_trials_are_drawn_together_only_where_they_share_their_starts():
    rng = np.random.default_rng(0)
    difficulty = 10.0 * rng.normal(size=12)
    true = [difficulty + 1.0, difficulty, difficulty - 1.0]
    together = ranking.samples(true, true, draws=200)["regret_at_1"]
    assert np.all(together == 0)
    estimated = [difficulty, difficulty + 1.0, difficulty - 1.0]
    shared = interval(ranking.samples(true, estimated, draws=200)["rank_correlation"])
    apart = interval(ranking.samples(true, estimated, draws=200, shared=False)["rank_correlation"])
    assert shared == [0.5, 0.5, 0.5] and apart[0] == 0.5 and apart[1] < 0 < apart[2]
    uneven = ranking.samples([true[0], true[1][:3]], [true[0], true[1][:3]], draws=20, shared=False)
    assert np.isfinite(uneven["value_gap"]).all()


def test_one_trial_has_no_interval():
    found = ranking.samples([[1.0], [2.0], [3.0]], [[1.0], [3.0], [2.0]], draws=10)["rank_correlation"]
    assert interval(found) == [0.5, None, None]
