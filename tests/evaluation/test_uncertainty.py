"""The uncertainty suite on real rollouts: what it compares, what it writes, and what the report says of it."""

import json

import numpy as np
import pytest
import tiny
from scipy import stats

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import read_clips
from whale_jax.evaluation.evaluate import Request, evaluate, evaluate_checkpoint
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.summary import outcome, statements
from whale_jax.evaluation.uncertainty.section import statement
from whale_jax.evaluation.uncertainty.suite import UncertaintySettings
from whale_jax.evaluation.video.metrics import lpips
from whale_jax.imagination.world import LoadedModel

SIDE = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=12, side=SIDE)).held_out()


@pytest.fixture(scope="module")
def world():
    return tiny.random_world(SIDE, members=2)


@pytest.fixture(scope="module")
def written(world, store, tmp_path_factory):
    """Metrics and the directory that they were written into."""
    output = tmp_path_factory.mktemp("output")
    settings = UncertaintySettings(episodes=2, batch_size=2, seed=0)
    model = LoadedModel(world.world, world.params, world.action_spec, world.meta, output / "c" / "reward" / "1")
    return evaluate(Job(model, store, output), {"uncertainty": settings}), output


@pytest.mark.slow
def test_every_estimate_is_held_against_the_error(written, world, store):
    metrics, _ = written
    report = metrics["uncertainty"]
    assert set(report["tasks"]) == set(tiny.TASKS)
    names = {"retracing", "retracing_hold_z", "disagreement", "entropy", "ensemble"}
    assert set(report["mean"]) == names and set(report["differences"]) == names - {"retracing"}
    settings = UncertaintySettings(episodes=2, batch_size=2, seed=0)
    clips = [c for c in read_clips(store, settings) if c.task == tiny.TASKS[0]]
    frames = np.concatenate([c.frames for c in clips])
    actions = np.concatenate([c.actions for c in clips])
    future = world.imagine(frames[:, :4], actions, uncertainty="ensemble")
    errors = lpips(frames[:, 4:], future.frames)
    entry = report["tasks"][tiny.TASKS[0]]
    assert entry["pairs"] == errors.size == 32 and entry["mean_error"] == pytest.approx(errors.mean(), rel=1e-4)
    wanted = stats.pearsonr(future.uncertainty.ravel(), errors.ravel())[0]
    value, low, high = entry["estimates"]["ensemble"]["pearson"]
    assert value == pytest.approx(wanted, abs=1e-3) and low <= value <= high
    means = [report["tasks"][t]["estimates"]["entropy"]["spearman"][0] for t in tiny.TASKS]
    assert report["mean"]["entropy"]["spearman"][0] == pytest.approx(np.mean(means))


@pytest.mark.slow
def test_what_it_costs(written):
    cost = written[0]["uncertainty"]["cost"]
    passes = {name: entry["extra_frame_passes"] for name, entry in cost.items()}
    assert passes == {"none": 0, "retracing": 9, "retracing_hold_z": 9, "entropy": 0, "ensemble": 2}
    assert cost["none"]["ratio"] == 1.0 and cost["retracing"]["ratio"] > 1.0


@pytest.mark.slow
def test_risk_ends_at_the_mean_error_and_none_is_below_the_best(written):
    for entry in written[0]["uncertainty"]["tasks"].values():
        for estimate in entry["estimates"].values():
            assert estimate["risk"][-1] == pytest.approx(entry["mean_error"])
            assert (np.array(estimate["risk"]) >= np.array(entry["oracle_risk"]) - 1e-9).all()


@pytest.mark.slow
def test_report_and_metrics_are_written(written):
    metrics, output = written
    assert json.loads((output / "metrics.json").read_text())["uncertainty"] == metrics["uncertainty"]
    page = (output / "report.html").read_text()
    assert 'id="uncertainty"' in page and page.count('<svg class="chart"') == 2 * len(tiny.TASKS)
    assert 'id="films"' not in page and "Pearson" in page
    assert statements(metrics) == [statement(metrics["uncertainty"])]
    assert set(outcome(metrics)["uncertainty"]["tasks"]) == set(tiny.TASKS)


@pytest.mark.slow
def test_the_outcome_is_told_whichever_way_it_comes_out(written):
    report = written[0]["uncertainty"]
    for interval, verdict in (([0.2, 0.1, 0.3], "better than"), ([-0.2, -0.3, -0.1], "worse than")):
        text = statement(report | {"differences": {"entropy": {"pearson": interval}}})
        assert f"Retracing is {verdict} entropy" in text
    unsure = statement(report | {"differences": {"ensemble": {"pearson": [0.1, -0.1, 0.3]}}})
    assert "cannot be told from ensemble" in unsure


def test_unknown_suites_are_refused_before_anything_is_loaded():
    with pytest.raises(WhaleError, match="did you mean uncertainty"):
        evaluate_checkpoint(Request("nowhere", suites=["uncertainti"]))
    with pytest.raises(WhaleError, match="suite"):
        evaluate_checkpoint(Request("nowhere", suites=[]))
