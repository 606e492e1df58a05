"""The settings of suites, from config and command line, and measures that are one row each."""

import json

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.cli.evaluate import _settings
from whale_jax.cli.whale import build_parser, parse_overrides
from whale_jax.evaluation import comparison
from whale_jax.evaluation.clips import ProtocolSettings
from whale_jax.evaluation.suites import SUITES, check_names, choose
from whale_jax.evaluation.summary import write_report
from whale_jax.evaluation.value.suite import ValueSettings
from whale_jax.evaluation.video import metrics as video
from whale_jax.evaluation.video.measures import MEASURES, Measure, measure
from whale_jax.evaluation.video.summary import measures
from whale_jax.jobs.configuration import default_config, load_config, override, to_plain
from whale_jax.training.former import current

FLAT = {"context": 2, "horizon": 5, "episodes": 3, "batch_size": 2, "start": -1, "seed": 7}


def typed(*arguments: str) -> dict:
    """Parses what is typed after `whale evaluate`, by suite and key."""
    options, rest = build_parser().parse_known_args(["evaluate", "--checkpoint=c", *arguments])
    options.overrides = parse_overrides(rest, options)
    return _settings(options, options.suite.split(","))


def test_a_config_from_before_the_groups_means_what_it_meant():
    chosen = choose(SUITES.keys() - {"judge"}, FLAT, {})
    assert chosen.clips == ProtocolSettings(**FLAT) and chosen.settings["value"] == ValueSettings()
    shared = {name: getattr(chosen.settings["uncertainty"], name) for name in ("episodes", "batch_size", "seed")}
    assert shared == {"episodes": 3, "batch_size": 2, "seed": 7} and chosen.settings["uncertainty"].horizon == 8


def test_a_call_comes_before_the_config_and_a_config_before_the_defaults():
    config = default_config()
    changes = {"evaluation.value.horizon": "40", "evaluation.value.draws": "9", "evaluation.episodes": "4"}
    override(config, changes.items())
    values = json.loads(json.dumps(to_plain(config)))["evaluation"]
    chosen = choose(("value", "uncertainty"), values, typed("--suite=value", "--evaluation.value.draws=5"))
    assert chosen.settings["value"] == ValueSettings(horizon=40, draws=5)
    assert chosen.settings["uncertainty"].episodes == 4 and chosen.settings["uncertainty"].estimators == ()


def test_the_clips_of_a_call_are_those_of_every_suite_unless_one_has_its_own():
    changes = {"trust": {"context": 2}}
    chosen = choose(SUITES.keys() - {"judge"}, FLAT, changes, episodes=1, context=3, horizon=9)
    for of in (chosen.clips, chosen.settings["value"], chosen.settings["uncertainty"]):
        assert (of.episodes, of.context, of.horizon) == (1, 3, 9)
    of = chosen.settings["trust"]
    assert (of.episodes, of.context, of.horizon) == (1, 2, 9) and chosen.settings["behaviour"].episodes == 1


def test_short_options_are_settings_too():
    judge = typed(
        "--suite=judge", "--judge-endpoint=http://host/v1?a=b", "--judge-prices=2.5,10", "--judge-budget=3", "--no-fvd"
    )
    assert judge == {
        "judge": {"chat": {"endpoint": "http://host/v1?a=b", "prices": (2.5, 10)}, "budget": 3.0},
    }
    assert typed("--no-fvd") == {"video": {"fvd": False}} and typed() == {}
    asked = typed("--evaluation.uncertainty.estimators=entropy,ensemble")
    assert asked == {"uncertainty": {"estimators": ("entropy", "ensemble")}}


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("--evaluation.uncertainty.steps=1,2", "use evaluation.uncertainty.estimators=retracing:steps=1-2-3"),
        ("--evaluation.valu.horizon=4", "did you mean evaluation.value.horizon"),
        ("--evaluation.value.horzon=4", "did you mean evaluation.value.horizon"),
        ("--evaluation.value.horizon=x", "evaluation.value.horizon takes a"),
        ("--evaluation.value=4", "evaluation.value is a group of keys"),
        ("--evaluation.judge.budget=much", "evaluation.judge.budget takes a"),
        ("--evaluation.value.horizon", "no option named"),
        ("--evaluaton.value.horizon=4", "did you mean .*--evaluation.SUITE.KEY=VALUE"),
    ],
)
def test_settings_that_do_not_exist_or_are_of_another_type_are_refused_as_typed(argument, says):
    with pytest.raises(WhaleError, match=says):
        typed(argument)


@pytest.mark.parametrize(
    ("suite", "changes", "says"),
    [
        ("value", {"horizon": 0}, "horizon"),
        ("value", {"horizon": "ten"}, "evaluation.value.horizon takes a"),
        ("value", {"hrizon": 1}, "did you mean .*horizon"),
        ("judge", {}, "needs a vision-language model"),
        ("judge", {"chat": {"prices": ("a", "b")}, "dry_run": True}, "evaluation.judge.chat.prices takes a"),
        ("judge", {"chat": {"prices": (1.0,)}, "dry_run": True}, "--judge-prices takes two"),
        ("judge", {"budget": "x"}, "evaluation.judge.budget takes a"),
        ("uncertainty", {"steps": ()}, "evaluation.uncertainty.steps is .* use evaluation.uncertainty.estim"),
        ("uncertainty", {"estimators": ("entropi",)}, "did you mean entropy"),
        ("uncertainty", {"context": -1}, "evaluation.uncertainty.context is at least 0"),
        ("judge", {"criteria": "nowhere.yaml", "dry_run": True}, "There is no"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_before_anything_is_imagined(suite, changes, says):
    with pytest.raises(WhaleError, match=says):
        choose((suite,), FLAT, {suite: changes})


def test_what_is_said_to_a_suite_that_is_not_run_is_refused():
    for changes, policies, says in (({"value": {}}, {}, "add --suite=value"), ({}, {"me": print}, "Policies .* value")):
        with pytest.raises(WhaleError, match=says):
            check_names(("video",), changes, policies)
    with pytest.raises(WhaleError, match="did you mean video"):
        check_names(("vidio",), {}, {})


@pytest.fixture
def darkness(monkeypatch):
    """One more measure, which is one more row."""

    def function(real, imagined, moving):
        return 1 - imagined.mean((2, 3, 4)) / 255

    row = Measure("darkness", "Darkness", "1 for black", -1, "mean of the pixels", function, compared=True)
    monkeypatch.setitem(MEASURES._rows, row.name, row)
    return row


def test_a_new_measure_is_one_row_and_metrics_without_it_stay_valid(darkness, invented, tmp_path):
    films = np.zeros((2, 3, 16, 16, 3), np.uint8)
    moving = np.ones(films.shape[:-1], bool)
    assert measure(films, films, moving)["darkness"] == [1.0] * 3
    table = comparison.summarise({"a": {"darkness": np.ones((2, 8))}, "b": {"darkness": np.zeros((2, 8))}})
    assert "| Darkness |" in comparison.to_text(table) and "-1.000" in comparison.to_text(table)
    before = invented()
    assert "darkness" not in measures(before["video"])
    assert "Darkness" not in write_report(tmp_path / "before.html", before).read_text()
    for cell in (after := invented())["video"]["reach"].values():
        cell["darkness"] = [0.5] * 14
    assert "darkness" not in measures(after["video"]), "not every cell has it"
    for row in after["video"].values():
        for cell in row.values():
            cell["darkness"] = [0.5] * 14
    assert "Darkness by horizon" in write_report(tmp_path / "after.html", after).read_text()


def test_measures_need_frames_of_their_size():
    small, large = (np.zeros((1, 2, side, side, 3), np.uint8) for side in (16, 32))
    names = [set(measure(films, films, np.ones(films.shape[:-1], bool))) for films in (small, large)]
    assert names[1] == set(MEASURES) and names[1] - names[0] == {"lpips", "moving_lpips"}
    assert measure(small, small, np.ones(small.shape[:-1], bool))["psnr"][0] == video.PSNR_CAP


def test_a_checkpoint_from_before_the_estimators_is_evaluated_as_it_was():
    values = FLAT | {"uncertainty": {"steps": [1, 2, 3], "horizon": 4}}
    config = {"stages": {"ensemble": {"members": 3}}, "evaluation": values}
    assert choose(("uncertainty",), current(config)["evaluation"], {}).settings["uncertainty"].estimators == ()
    values["uncertainty"]["steps"] = [1, 2]
    chosen = choose(("uncertainty",), current(config)["evaluation"], {}).settings["uncertainty"]
    assert chosen.estimators == ("retracing:starts=any:steps=1-2", "entropy", "ensemble") and chosen.horizon == 4
    assert current(config | {"stages": {}})["evaluation"]["uncertainty"]["estimators"][1:] == ["entropy"]
    assert current({}) == {} and current(current(config)) == current(config)


def test_the_report_of_a_run_needs_the_frames_of_its_longest_suite():
    values = load_config("quickstart").evaluation.to_dict()
    chosen = choose(values["suites"], values, {})
    assert chosen.clips.horizon == 16 and chosen.longest.context + chosen.longest.horizon == 4 + 16
    assert choose(("video", "uncertainty"), values, {}).longest == chosen.clips  # 4 + 8 are fewer than 2 + 16
    more = choose(("uncertainty",), values, {"uncertainty": {"context": 6, "horizon": 20}})
    assert more.longest.context + more.longest.horizon == 26
