"""The judge suite: consistency rates, the filter, criteria that users write, and the report."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import tiny
import tiny_judge
from tiny_judge import criteria_of, settings_for

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.evaluation.evaluate import evaluate, rescore
from whale_jax.evaluation.judge.asking import JudgeSettings
from whale_jax.evaluation.judge.consistency import PERCENT, score
from whale_jax.evaluation.judge.scenarios import read_scenarios, scenario_of
from whale_jax.evaluation.judge.suite import Judge
from whale_jax.evaluation.judge.verdicts import majority
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.summary import outcome, statements
from whale_jax.evaluation.video.suite import VideoSettings


def vote(*holds: bool) -> dict:
    return {"criteria": dict(zip("abcde", holds, strict=False)), "said": all(holds), "differences": ""}


def test_votes_without_verdict_count_for_neither_side():
    nothing = {"cause": "refused"}
    assert majority([vote(True), nothing, nothing]) is True and majority([vote(False), nothing]) is False
    assert majority([vote(True), vote(False), nothing]) is None and majority([nothing] * 3) is None


def test_one_broken_criterion_makes_a_vote_inconsistent_whatever_it_concluded():
    contradicting = vote(True, False) | {"said": True}
    pair = {"votes": [vote(True, True, False)] * 2 + [vote(True, True, True)], "uncertainty": 0.0}
    report = score({"a": {"scenario": "a", "pairs": [pair, pair | {"votes": [contradicting]}]}})
    assert report["all"]["inconsistent"] == 2 and report["contradictions"] == 1


def test_the_filter_keeps_the_surest_of_each_task_and_undecided_pairs_are_counted_apart():
    # From the surest: consistent, undecided, consistent, inconsistent, inconsistent.
    order = [vote(True), {"cause": "refused"}, vote(True), vote(False), vote(False)]
    pairs = [{"votes": [each], "uncertainty": float(i)} for i, each in enumerate(order)]
    report = score({"a": {"scenario": "x", "pairs": pairs[::-1]}, "b": {"scenario": "x", "pairs": pairs}})
    a, everything = report["tasks"]["a"], report["all"]
    assert [a[name] for name in ("total", "consistent", "inconsistent", "undecided")] == [5, 2, 2, 1]
    assert [each["kept"] for each in a["filter"]] == [1, 2, 3, 4, 5] and PERCENT == (20, 40, 60, 80, 100)
    assert [each["decided"] for each in a["filter"]] == [1, 1, 2, 3, 4]
    rates = [1, 1, 1, 2 / 3, 2 / 4]
    assert [each["rate"][0] for each in a["filter"]] == rates == [each["rate"][0] for each in everything["filter"]]
    assert [each["kept"] for each in everything["filter"]] == [2, 4, 6, 8, 10] and report["causes"] == {"refused": 2}
    # Wilson's interval of 2 in 4, by hand: (p + z²/2n ± z·sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n).
    z = 1.959964
    half = z * np.sqrt(1 / 16 + z**2 / 64) / (1 + z**2 / 4)
    assert a["rate"] == pytest.approx([0.5, 0.5 - half, 0.5 + half], abs=1e-6)


def test_criteria_of_the_user_s_own_take_tasks_over(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "scenarios:\n  doors:\n    tasks: [door-close, door-open]\n    instruction: A door.\n"
        "    criteria: {shut: 'The door: shut as in the first picture.'}\n"
    )
    scenarios = read_scenarios(path)
    assert scenario_of("door-close", scenarios).keys == scenario_of("door-open", scenarios).keys == ("shut",)
    assert scenario_of("drawer-close", scenarios).name == "drawer-close"
    assert scenario_of("anything", scenarios).name == "default"
    tasks = [task for scenario in read_scenarios().values() for task in scenario.tasks]
    assert {"door-close", "drawer-close", "plate-slide", "open-bin"} <= set(tasks)


FORM = "scenarios:\n  a:\n    tasks: [x]\n    instruction: Do.\n    criteria:\n      ok: It is.\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("scenarios: [", "is not YAML"),
        ("a: 1", "needs `scenarios:`"),
        (FORM.replace("[x]", "x"), "scenario a: tasks is 'x'"),
        (FORM.replace("[x]", "[]"), "scenario a: tasks is empty"),
        (FORM.replace("Do.", ""), "scenario a, instruction"),
        (
            FORM.replace("criteria", "criterion"),
            "scenario a: There is no field named 'criterion'; did you mean criteria",
        ),
        (FORM.replace("ok: It is.", "{}"), "scenario a: criteria is"),
        (FORM.replace("ok", "Ok-1"), "scenario a, criterion 'Ok-1'"),
        (FORM.replace("It is.", "true"), "scenario a, criterion ok: it is True"),
        (FORM + "      ok: Twice.\n", "'ok' stands twice"),
        (FORM + FORM.partition("\n")[2].replace("  a:", "  b:"), "both a and b name the task x"),
    ],
)
def test_criteria_of_another_form_are_refused_with_their_place(tmp_path, text, says):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(WhaleError) as error:
        read_scenarios(tmp_path / "own.yaml")
    assert says in str(error.value) and "own.yaml" in str(error.value)
    with pytest.raises(WhaleError, match="There is no"):
        read_scenarios(tmp_path / "none.yaml")


@pytest.fixture(scope="module")
def world():
    world = tiny.random_world(tiny.SIDE)
    params = {name: values for name, values in world.params.items() if name != "reward"}
    return dataclasses.replace(world, params=params)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=8)).held_out()


SETTINGS = ProtocolSettings(context=2, horizon=4, episodes=2, batch_size=2)


@pytest.fixture(scope="module")
def written(world, clips, tmp_path_factory):
    """Metrics of the judge suite, where they lie, and how many requests they took."""
    output, number = tmp_path_factory.mktemp("output"), itertools.count()
    with tiny_judge.serving() as judge:
        judge.decide = lambda body: dict.fromkeys(criteria_of(body), next(number) % 2 == 0)
        settings = settings_for(judge, votes=1, chat_concurrency=1, chat_prices=(2.0, 10.0))
        metrics = evaluate(Job(world, clips, output, SETTINGS), {"judge": settings})
        yield metrics, output, len(judge.asked)


def test_every_clip_is_imagined_and_its_end_is_judged(written, world, clips):
    metrics, output, asked = written
    report = metrics["judge"]
    assert asked == report["all"]["total"] == 8 and not report["failed"]
    assert report["all"]["consistent"] == report["all"]["inconsistent"] == 4
    entry = report["tasks"]["reach"]
    assert entry["scenario"] == "default" and len(entry["pairs"]) == 4 and entry["pairs"][0]["uncertainty"] > 0
    assert json.loads((output / "metrics.json").read_text())["judge"] == json.loads(json.dumps(report))


def test_the_report_shows_the_rates_the_curve_and_the_pairs(written):
    metrics, output, _ = written
    page = (output / "report.html").read_text()
    assert 'id="judge"' in page and page.count('<svg class="chart"') == 3 and page.count('alt="reach') == 8
    assert "50 % [22, 78]" in page and page.count("not met, by votes") == 4
    assert "in 4 of 8 clips of 2 tasks (50 % [22, 78] of those decided)" in statements(metrics)[0]
    found = outcome(metrics)["judge"]
    assert "pairs" not in found["tasks"]["reach"] and found["cost"]["asked"] == 8


def test_scoring_anew_asks_nobody_and_keeps_the_pictures(written, tmp_path):
    metrics, output, _ = written
    again, place = rescore(output, tmp_path / "again")
    assert again["judge"] == json.loads(json.dumps(metrics["judge"]))
    assert (place / "report.html").read_text().count('alt="reach') == 8


def test_without_anybody_to_ask_the_other_suites_are_all_there(written, world, clips, tmp_path):
    settings = {"judge": JudgeSettings(), "video": VideoSettings(fvd=False)}
    metrics = evaluate(Job(world, clips, tmp_path, SETTINGS), settings)
    assert set(metrics["video"]) == set(tiny.TASKS) and "judge" not in metrics
    assert 'id="films"' in (tmp_path / "report.html").read_text()
    assert len(metrics["failed"]) == 1 and "judge: The judge needs a vision-language model" in metrics["failed"][0]
    with pytest.raises(WhaleError, match="^The judge needs"):
        evaluate(Job(world, clips, tmp_path, SETTINGS), {"judge": JudgeSettings()})


def test_where_retracing_cannot_be_had_the_entropy_filters_and_that_is_said(written, judge, world, tmp_path):
    short = open_store(tiny.write_store(tmp_path / "store", steps=5)).held_out()
    report = Judge().run(Job(world, short, tmp_path, SETTINGS, settings_for(judge)))
    for found, why in ((written[0]["judge"], "LPIPS needs frames of at least"), (report, "episodes of 6 frames")):
        assert found["estimate"] == "entropy" and found["clips"]["context"] == 2
        assert "the entropy alone" in found["notes"][0] and why in found["notes"][0]
