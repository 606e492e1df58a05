"""The trust suite on real rollouts: what it calibrates and writes, and whether its bounds hold on other clips."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import ProtocolSettings, read_clips
from whale_jax.evaluation.evaluate import evaluate, rescore
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.summary import outcome, statements
from whale_jax.evaluation.trust import coverage
from whale_jax.evaluation.trust.suite import TrustSettings
from whale_jax.evaluation.video.metrics import lpips
from whale_jax.imagination.trust import STEPS, Calibration, least_clips, read_trust

SIDE = 32
SETTINGS = {"horizon": 4, "episodes": 9, "batch_size": 9, "seed": 0, "splits": 20, "tolerances": (0.4, 0.1, 9.0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=9, side=SIDE, each=9)).held_out()


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    """A model, its metrics and the directory of its run, into which they were written."""
    run = tmp_path_factory.mktemp("run")
    model = dataclasses.replace(tiny.random_world(SIDE), source=run / "checkpoints" / "reward" / "1")
    metrics = evaluate(Job(model, store, run), {"trust": TrustSettings(**SETTINGS)})
    return dataclasses.replace(model), metrics, run


def test_the_errors_are_those_of_held_out_rollouts_and_the_run_finds_them(written, store):
    model, metrics, run = written
    trust = read_trust(run / "trust.json")
    assert trust.split == ("test",) and set(trust.tasks) == set(tiny.TASKS) and trust.model == model.imagining
    group = read_clips(store, TrustSettings(**SETTINGS))[0]
    future = model.imagine(group.frames[:, :4], group.actions, uncertainty="entropy", task=group.task)
    clips = trust.tasks[group.task]
    assert clips.policies == (group.policy,) * 9 + (tiny.POLICIES["test"][1],) * 9
    np.testing.assert_allclose(clips.errors[:9], lpips(group.frames[:, 4:], future.frames), atol=2e-6)
    np.testing.assert_allclose(clips.estimates["entropy"][:9], future.uncertainty, rtol=1e-4)
    worst = np.sort(np.maximum.accumulate(clips.errors, axis=1), axis=0)
    entry = metrics["trust"]["tasks"][group.task]
    assert entry["clips"] == 18 and entry["bound"] == worst[17].tolist()  # 19 * 0.1: one of 19 may exceed it
    np.testing.assert_allclose(future.bound, worst[17], rtol=1e-6)
    steps = {row["tolerance"]: row["steps"] for row in entry["horizons"]}
    assert steps[0.4] == (worst[17] < 0.4).sum() and steps[9.0] == 4 and len(steps) == 4
    assert future.trust_horizon(9.0).tolist() == [4] * 9


def test_coverage_is_measured_on_clips_that_did_not_calibrate(written):
    for entry in written[1]["trust"]["tasks"].values():
        assert set(entry["coverage"]) == {"random splits", "policy by policy", "from trained policies"}
        assert entry["calibrating"] == 9
        assert 0.8 < np.mean(entry["coverage"]["random splits"]) < 1
        assert set(entry["horizons"][0]["clocks"]) == {STEPS, "entropy"}


def test_report_and_metrics_are_written(written, tmp_path):
    _, metrics, run = written
    assert json.loads((run / "metrics.json").read_text())["trust"] == json.loads(json.dumps(metrics["trust"]))
    page = (run / "report.html").read_text()
    assert 'id="trust"' in page and page.count('<svg class="chart"') == len(tiny.TASKS)
    assert "In 90 % of rollouts the error (LPIPS) stays below 0.4 until step" in statements(metrics)[0]
    some = any(0 < row["steps"] < 4 for entry in metrics["trust"]["tasks"].values() for row in entry["horizons"])
    assert ("By their entropy, rollouts are trusted for" in statements(metrics)[0]) == some
    assert set(outcome(metrics)["trust"]["tasks"]) == set(tiny.TASKS)
    assert rescore(run, tmp_path)[0]["trust"] == json.loads(json.dumps(metrics["trust"]))


def test_too_few_clips_are_counted(written, store, tmp_path):
    model, *_ = written
    with pytest.raises(WhaleError, match="door-close has 4 calibration clips, .* takes 9; evaluate more .* alpha=0.2 "):
        evaluate(Job(model, store, tmp_path), {"trust": TrustSettings(**SETTINGS | {"episodes": 2})})
    assert not (tmp_path / "trust.json").exists()
    metrics = evaluate(
        Job(model, store, tmp_path), {"trust": TrustSettings(**SETTINGS | {"episodes": 2, "alpha": 0.2})}
    )
    entry = metrics["trust"]["tasks"]["reach"]
    assert entry["calibrating"] is None and "random splits" not in entry["coverage"]  # none would be left to test
    assert not any(row["clocks"] for row in entry["horizons"])
    assert not metrics["trust"]["failed"] and "By their" not in statements(metrics)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.0}, "alpha is 1.0; a share"),
        ({"tolerances": ()}, "give one error at least"),
        ({"tolerances": (0.1, -0.1)}, "above 0, not -0.1"),
        ({"estimates": ("entropie",)}, "did you mean entropy"),
        ({"context": 0}, "context is at least 1"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(WhaleError, match=message):
        TrustSettings(**SETTINGS | changes)


def test_the_clips_are_those_that_all_suites_share():
    assert TrustSettings.needed() == ["horizon", "episodes", "batch_size", "seed"]
    assert set(TrustSettings.needed()) <= set(ProtocolSettings.defaults())


@pytest.mark.parametrize(("total", "share"), [(9, None), (10, 9), (12, 9), (36, 9), (38, 19), (60, 29), (120, 59)])
def test_as_many_clips_calibrate_as_make_the_coverage_exact(total, share):
    assert coverage.calibration_share(total, 0.1) == share
    assert share is None or (share + 1) * 0.1 == pytest.approx(round((share + 1) * 0.1))


@pytest.mark.parametrize("total", [24, 60])
def test_bounds_hold_for_nine_of_ten_clips_over_random_splits(total):
    rng = np.random.default_rng(0)
    errors = np.cumsum(rng.gamma(1.0, 0.02, (total, 12)) * rng.gamma(2.0, 1.0, (total, 1)), axis=1)
    policies = tuple("abc"[i % 3] for i in range(total))
    clips = Calibration(policies, errors, {"entropy": errors * rng.lognormal(0.0, 0.5, errors.shape)})
    splits = coverage.random_splits(total, 0.1, 200, 0)
    assert all(not set(a) & set(b) and len(a) + len(b) == total for a, b in splits) and len(splits) == 200
    assert (np.abs(np.array(coverage.over_splits(clips, splits, 0.1)) - 0.9) < 0.03).all()
    found = coverage.clocks_over_splits(clips, splits, (STEPS, "entropy"), 0.1, 0.4)
    assert 0.87 < found["entropy"]["kept"] < 0.93 < found["entropy"]["right"]
    assert found["entropy"]["steps"] > found[STEPS]["steps"] > 0


def test_a_policy_that_is_worse_than_those_that_calibrated_shows():
    rng = np.random.default_rng(0)
    errors, policies = rng.uniform(0, 1, (40, 3)), ("good",) * 20 + ("bad",) * 20
    errors[20:] += 1
    clips = Calibration(policies, errors, {})
    parts = dict(zip(("bad", "good"), coverage.splits_by_policy(policies, 0.1), strict=True))
    assert parts["bad"][1].tolist() == list(range(20, 40))
    assert coverage.over_splits(clips, [parts["bad"]], 0.1) == [0.0] * 3
    assert coverage.over_splits(clips, [parts["good"]], 0.1) == [1.0] * 3
    assert not coverage.splits_by_policy(("a",) * 8 + ("b",) * 8, 0.1) and least_clips(0.1) == 9
