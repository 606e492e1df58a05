"""The uncertainty suite on real rollouts: what it compares, what it writes, and what the report says of it."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tiny
from scipy import stats

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.evaluation.clips import read_clips
from whale_jax.evaluation.evaluate import Request, _earlier, evaluate, evaluate_checkpoint
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.suites import SUITES
from whale_jax.evaluation.summary import outcome, statements, write_report
from whale_jax.evaluation.uncertainty import estimates, section
from whale_jax.evaluation.uncertainty.estimates import choose, read_steps
from whale_jax.evaluation.uncertainty.section import best_rival, difference, statement
from whale_jax.evaluation.uncertainty.suite import UncertaintySettings
from whale_jax.evaluation.video.metrics import lpips
from whale_jax.imagination.uncertainty.base import Estimator
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS
from whale_jax.imagination.world import LoadedModel

SIDE = 32
SETTINGS = UncertaintySettings(episodes=2, batch_size=2, seed=0, draws=50)
ERRORS = {"real", "reconstruction"}
RIVALS = {"step number", "entropy times step", "entropy accumulated"}
DERIVED = {"retracing disagreement", "retracing accumulated", "ensemble accumulated"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=12, side=SIDE)).held_out()


@pytest.fixture(scope="module")
def world():
    return tiny.random_world(SIDE, members=2)


def measured(world: LoadedModel, store: EpisodeStore, output, **changes):
    """Runs the whole suite; returns the metrics as written, and the directory."""
    model = dataclasses.replace(world, source=output / "c" / "reward" / "1")
    settings = dataclasses.replace(SETTINGS, **changes)
    return evaluate(Job(model, store, output), {"uncertainty": settings}), output


@pytest.fixture(scope="module")
def written(world, store, tmp_path_factory):
    return measured(world, store, tmp_path_factory.mktemp("output"))


@pytest.fixture(scope="module")
def alone(world, store, tmp_path_factory):
    """A plug-in's estimator and nothing else; it is the same for all trajectories of a step."""

    @dataclasses.dataclass(frozen=True)
    class Brightness(Estimator):
        name, definition = "brightness", "mean of the frame"

        def estimate(self, model, params, carry, memory, actions, prediction):
            return memory, {"uncertainty": prediction.frames.mean((2, 3, 4))}

    ESTIMATORS.add(Brightness)
    try:
        return measured(world, store, tmp_path_factory.mktemp("alone"), estimators=("brightness",))
    finally:
        del ESTIMATORS._rows["brightness"]  # other tests compare what is registered


@pytest.mark.slow
def test_every_estimate_and_free_rival_is_held_against_both_errors(written, world, store):
    report = written[0]["uncertainty"]
    assert set(report["tasks"]) == set(tiny.TASKS) and set(report["mean"]) == ERRORS
    kinds = {kind: {name for name, k in report["kinds"].items() if k == kind} for kind in report["kinds"].values()}
    assert kinds == {"estimator": {"retracing", "entropy", "ensemble"}, "free": RIVALS, "derived": DERIVED}
    clips = [c for c in read_clips(store, dataclasses.replace(SETTINGS, context=4)) if c.task == tiny.TASKS[0]]
    frames, actions = (np.concatenate([getattr(c, name) for c in clips]) for name in ("frames", "actions"))
    future, entropy = (world.imagine(frames[:, :4], actions, uncertainty=name) for name in ("ensemble", "entropy"))
    entry = report["tasks"][tiny.TASKS[0]]
    against = {"real": frames, "reconstruction": world.reconstruct(frames)}
    for error, target in against.items():
        errors = lpips(target[:, 4:], future.frames)
        found = entry[error]["estimates"]
        assert entry["pairs"] == errors.size and entry[error]["mean_error"] == pytest.approx(errors.mean(), rel=1e-4)
        by_hand = {
            "ensemble": future.uncertainty,
            "entropy accumulated": entropy.uncertainty.cumsum(1),
            "entropy times step": entropy.uncertainty * np.arange(1, 9),
        }
        for name, values in by_hand.items():
            value, low, high = found[name]["pooled"]
            assert value == pytest.approx(stats.pearsonr(values.ravel(), errors.ravel())[0], abs=1e-3)
            assert low <= value <= high
        assert found["step number"]["within"] == found["step number"]["trajectory"] == [None] * 3
        means = [report["tasks"][t][error]["estimates"]["entropy"]["spearman"][0] for t in tiny.TASKS]
        assert report["mean"][error]["entropy"]["spearman"][0] == pytest.approx(np.mean(means))
    assert entry["real"]["mean_error"] != entry["reconstruction"]["mean_error"]


@pytest.mark.slow
def test_every_pair_has_its_difference(written):
    report = written[0]["uncertainty"]
    names = list(report["kinds"])
    assert len(names) == 9
    for error in ERRORS:
        mean = report["mean"][error]
        for a in names:
            for b in set(names) - {a}:
                for level in ("pooled", "spearman"):
                    value, low, high = difference(report, error, a, b)[level]
                    assert value == pytest.approx(mean[a][level][0] - mean[b][level][0]) and low <= high


@pytest.mark.slow
def test_the_steps_of_an_evaluation_can_be_read_again(written):
    metrics, output = written
    steps, report = read_steps(output), metrics["uncertainty"]
    assert set(steps) == ERRORS
    for error, tasks in steps.items():
        for task, each in tasks.items():
            assert set(each.estimates) == set(report["kinds"])
            pooled = stats.pearsonr(each.estimates["retracing"].ravel(), each.errors.ravel())[0]
            assert report["tasks"][task][error]["estimates"]["retracing"]["pooled"][0] == pytest.approx(pooled)


@pytest.mark.slow
def test_what_it_costs(written):
    cost = written[0]["uncertainty"]["cost"]
    passes = {name: entry["extra_frame_passes"] for name, entry in cost.items()}
    assert passes == {"none": 0, "retracing": passes["retracing"], "entropy": 0, "ensemble": 2}
    assert cost["none"]["ratio"] == 1.0 and cost["retracing"]["ratio"] > 1.0 and passes["retracing"] > 0


@pytest.mark.slow
def test_risk_ends_at_the_mean_error_and_none_is_below_the_best(written):
    for task in written[0]["uncertainty"]["tasks"].values():
        for entry in (task[error] for error in ERRORS):
            for estimate in entry["estimates"].values():
                assert estimate["risk"][-1] == pytest.approx(entry["mean_error"])
                assert (np.array(estimate["risk"]) >= np.array(entry["oracle_risk"]) - 1e-9).all()


@pytest.mark.slow
def test_report_and_metrics_are_written(written):
    metrics, output = written
    assert json.loads((output / "metrics.json").read_text())["uncertainty"] == metrics["uncertainty"]
    page = (output / "report.html").read_text()
    assert 'id="uncertainty"' in page and page.count('<svg class="chart"') == 2 * len(tiny.TASKS)
    assert 'id="films"' not in page and "entropy times step" in page
    for error in ("the real frame", "its reconstruction"):
        assert f"Error against {error}: correlation" in page and f"Error against {error}: differences" in page
    (step,) = re.findall(r'"row">step number</th>(.*?)</tr>', page.partition("its reconstruction: corr")[0])
    cells = re.findall("<td>(.*?)</td>", step)
    assert len(cells) == 4 and cells[1] == cells[2] == "\N{EN DASH}" != cells[0], "undefined within steps"
    assert statements(metrics) == [statement(metrics["uncertainty"])]
    assert set(outcome(metrics)["uncertainty"]["tasks"][tiny.TASKS[0]]) == ERRORS
    assert all(text in statements(metrics)[0] for text in ("Against the real frame: ", "Against its reconstruction: "))
    figures = SUITES["uncertainty"].figures(metrics["uncertainty"])
    assert {"entropy_pearson", "retracing_pearson_reconstruction"} < set(figures)


@pytest.mark.slow
def test_each_estimator_is_told_from_the_best_rival_and_from_each_other(written, monkeypatch):
    report = json.loads(json.dumps(written[0]["uncertainty"]))
    for error in ERRORS:
        report["mean"][error]["retracing"]["pooled"][0] = 0.9
        report["mean"][error]["ensemble"]["pooled"][0] = 0.1
        report["mean"][error]["entropy"]["pooled"][0] = 0.5
    rival = best_rival(report, "real")
    assert rival in RIVALS
    for (low, high), verdict in (
        ((0.1, 0.3), "is better than"),
        ((-0.3, -0.1), "is worse than"),
        ((-0.1, 0.2), "cannot be told from"),
    ):
        for rows in report["differences"]["real"].values():
            for found in rows.values():
                found["pooled"] = [(low + high) / 2, low, high]
        told = f"{(low + high) / 2:.2f} [{low:.2f}, {high:.2f}]".replace("-", "\N{MINUS SIGN}")
        others = f"{rival} ({told}), entropy ({told}) and ensemble ({told})"
        assert f"Retracing {verdict} {others}." in statement(report)
        assert f"Ensemble {verdict} {rival} ({told})." in statement(report)
        assert f"Entropy {verdict} {rival} ({told}) and ensemble ({told})." in statement(report)
        with monkeypatch.context() as few:
            few.setattr(section, "SAID", 2)
            assert f"Retracing {verdict} {others}." in statement(report)
            assert f"Entropy {verdict} {rival} ({told})." in statement(report)
    turned = difference(report, "real", "ensemble", "retracing")["pooled"]
    assert turned == pytest.approx([-0.05, -0.2, 0.1])


@pytest.mark.slow
def test_a_plug_in_alone_is_compared_with_what_is_there(alone):
    """Its rivals are as many as beside other estimators, though nothing that was asked for tells the entropy."""
    metrics, output = alone
    report, text = metrics["uncertainty"], statements(metrics)[0]
    assert set(report["kinds"]) == {"brightness", "brightness accumulated", *estimates.RIVALS}
    assert set(report["cost"]) == {"none", "brightness"} and best_rival(report, "real") in estimates.RIVALS
    assert "Brightness " in text and "retracing" not in text
    assert "retracing" not in (output / "report.html").read_text().partition("What each figure is")[0]


@pytest.mark.slow
def test_a_robot_with_absolute_actions_is_measured_without_retracing(world, store, tmp_path):
    kinds = tuple("absolute" if kind == "delta" else kind for kind in world.action_spec.kinds)
    spec = dataclasses.replace(world.action_spec, kinds=kinds)
    absolute = EpisodeStore(store.root, store.info | {"action_spec": spec.to_json()}, store.records)
    robot = dataclasses.replace(world, action_spec=spec)
    metrics, output = measured(robot, absolute, tmp_path)
    report = metrics["uncertainty"]
    assert [name for name, kind in report["kinds"].items() if kind == "estimator"] == ["entropy", "ensemble"]
    assert report["settings"]["context"] == 4, "as beside retracing, so that entropies compare"
    note, unlearnt = report["notes"]
    assert unlearnt.startswith("Without learnt_error: ") and "has no learnt error yet" in unlearnt
    assert note.startswith("Without retracing: ") and "add up" in note
    assert note in statements(metrics)[0] and "Entropy" in statements(metrics)[0]
    with pytest.raises(WhaleError, match="cannot compare retracing: Retracing needs actions that add up"):
        choose(robot, ("entropy", "retracing"))


def test_estimators_that_were_asked_for_are_had_or_refused(world):
    assert list(choose(world, ("entropy", "ensemble", "entropy"))[0]) == ["entropy", "ensemble"]
    assert choose(world, ("entropy",))[1] == 4 and choose(world, ("entropy",), context=2)[1] == 2
    without = dataclasses.replace(world, params={k: v for k, v in world.params.items() if k != "ensemble"})
    assert list(choose(without)[0]) == ["retracing", "entropy"] and "Without ensemble" in choose(without)[2][0]
    asked = dataclasses.replace(SETTINGS, estimators=("ensemble",))
    with pytest.raises(WhaleError, match="cannot compare ensemble: .* holds no ensemble"):
        SUITES["uncertainty"].check(Job(without, None, None, settings=asked))
    with pytest.raises(WhaleError, match="did you mean entropy"):
        SUITES["uncertainty"].check_settings(dataclasses.replace(SETTINGS, estimators=("entropi",)))


def test_an_earlier_version_s_figures_are_refused_or_left_out_by_a_sentence(invented, tmp_path):
    earlier = {"tasks": {}, "mean": {"retracing": {"pearson": [0.5, 0.4, 0.6]}}, "differences": {}}
    metrics = invented() | {"uncertainty": earlier}
    with pytest.raises(WhaleError, match="run `whale evaluate --suite=uncertainty` again"):
        write_report(tmp_path / "report.html", metrics)
    metrics["protocol"] |= {"checkpoint": {"sha256": "0"}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    said = []
    kept = _earlier(Job(None, None, tmp_path, say=said.append), metrics["protocol"])
    assert kept["video"] == json.loads(json.dumps(metrics["video"])) and "uncertainty" not in kept
    assert "uncertainty suite is left out" in said[0]


def test_unknown_suites_are_refused_before_anything_is_loaded():
    with pytest.raises(WhaleError, match="did you mean uncertainty"):
        evaluate_checkpoint(Request("nowhere", suites=["uncertainti"]))
    with pytest.raises(WhaleError, match="suite"):
        evaluate_checkpoint(Request("nowhere", suites=[]))
