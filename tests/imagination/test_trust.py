"""The trust horizon: its order statistics by hand, its coverage, and what a model and its dreams make of it."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from gymnasium import error

from whale_jax.base.errors import WhaleError
from whale_jax.base.workdir import Workdir
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.data.store.store import open_store
from whale_jax.imagination.environments.envs import DreamVectorEnv
from whale_jax.imagination.loading import load
from whale_jax.imagination.trust import (
    STEPS,
    Calibration,
    Trust,
    bound,
    clock_of,
    exceeding,
    least_clips,
    limit,
    read_trust,
    steps_of,
    write_trust,
)
from whale_jax.imagination.uncertainty.estimators import Ensemble, Entropy, resolve
from whale_jax.imagination.world import LoadedModel

CONTEXT, HORIZON = 4, 3


def calibration(errors, **estimates):
    errors = np.array(errors, float)
    return Calibration(("expert",) * len(errors), errors, {name: np.array(each) for name, each in estimates.items()})


def trust_of(model="", alpha=0.1, context=CONTEXT, estimators=(), **tasks):
    robot = ACTION_SPEC.to_json()
    return Trust(model, robot, "data", dict(estimators), context, 0.0, alpha, "LPIPS", ("test",), tasks)


def rollouts(rng, count, steps=8):
    """Exchangeable rollouts: errors that grow at a pace of each rollout's own, and an estimate that knows the pace."""
    pace = rng.gamma(2.0, 1.0, (count, 1))
    errors = 0.02 + np.cumsum(rng.gamma(1.0, 0.01, (count, steps)) * pace, axis=1) * rng.uniform(0.5, 1.5, (count, 1))
    return calibration(errors, entropy=pace * rng.lognormal(0.0, 0.3, (count, steps)))


def test_the_order_statistic_by_hand():
    nine = np.arange(1.0, 10.0)[:, None]
    assert (least_clips(0.1), exceeding(9, 0.1), exceeding(8, 0.1)) == (9, 1, 0)
    assert bound(nine, 0.1) == 9.0  # the largest of nine: one of ten lies above it
    assert bound(np.arange(1.0, 20.0)[:, None], 0.1) == 18.0  # two of twenty lie above the 18th of 19
    assert (least_clips(0.05), exceeding(99, 0.29)) == (19, 29)  # 0.29 * 100 is 28.999… in floating point
    errors = np.array([[3.0, 1.0, 2.0]] * 8 + [[0.0, 4.0, 9.0]])
    assert bound(errors, 0.1).tolist() == [3.0, 4.0, 9.0]  # running errors
    assert bound(errors, 0.2).tolist() == [3.0, 3.0, 3.0]
    assert limit(errors, steps_of(errors.shape), 3.5, 0.1) == 2 and limit(errors, steps_of(errors.shape), 10, 0.1) > 3


def test_the_steps_before_the_limit_are_those_within_the_bound():
    rng = np.random.default_rng(0)
    for i in range(300):
        count, steps = rng.integers(9, 30), rng.integers(1, 7)
        drawn = rng.integers(0, 6, (count, steps)) / 5 if i % 2 else rng.random((count, steps))  # with ties, without
        for alpha in (0.1, 0.35):
            for tolerance in (0.2, 0.6, 1.0):
                within = bound(drawn, alpha) < tolerance
                clock = steps_of(drawn.shape)
                assert (within == (clock[0] < limit(drawn, clock, tolerance, alpha))).all()
                assert (np.diff(bound(drawn, alpha)) >= 0).all()


def test_equal_errors_are_within_their_own_bound():
    trust = trust_of(reach=calibration(np.full((9, 3), 0.2)))
    horizon = trust.horizon("reach", None, CONTEXT, 0.0)
    assert horizon.bound(3).tolist() == pytest.approx([0.2] * 3)
    assert horizon.steps(0.2, 3).tolist() == [0] and horizon.steps(0.21, 3).tolist() == [3]


@pytest.mark.parametrize("count", [9, 29])
def test_nine_of_ten_new_rollouts_keep_within_what_was_calibrated(count):
    rng, within, kept = np.random.default_rng(0), [], {STEPS: [], "entropy": []}
    for _ in range(200):
        known, new = rollouts(rng, count), rollouts(rng, 40)
        worst = np.maximum.accumulate(new.errors, axis=1)
        within.append((worst <= bound(known.errors, 0.1)).mean(0))
        for name, found in kept.items():
            trusted = new.clock(name) < limit(known.errors, known.clock(name), 0.15, 0.1)
            found.append(((worst < 0.15) | ~trusted).all(axis=1).mean())
    assert (np.abs(np.mean(within, axis=0) - 0.9) < 0.03).all()
    assert 0.87 < np.mean(kept["entropy"]) < 0.93
    assert np.mean(kept[STEPS]) > 0.87  # and more where the horizon falls between two steps


def test_an_uncertainty_that_knows_the_error_is_trusted_for_longer():
    rng = np.random.default_rng(1)
    known, new = rollouts(rng, 199), rollouts(rng, 500)
    steps = {
        name: (new.clock(name) < limit(known.errors, known.clock(name), 0.15, 0.1)).sum(1).mean()
        for name in (STEPS, "entropy")
    }
    assert steps["entropy"] > 1.5 * steps[STEPS] > 0


def test_nothing_is_trusted_where_the_first_step_is_not():
    errors = np.linspace(0.1, 0.2, 9)[:, None] * np.ones(3)
    clips = calibration(errors, entropy=errors)
    assert limit(errors, clips.clock("entropy"), 0.19, 0.1) == 0 < limit(errors, clips.clock("entropy"), 0.21, 0.1)


@pytest.mark.parametrize(
    ("errors", "message"),
    [
        (np.full((5, 3), 0.1), r"reach has 5 calibration clips, .* 90 % of rollouts takes 9; .* alpha=0.167 .* 83.3 %"),
        (np.where(np.eye(9, 3, -2), np.nan, 0.1), "error of reach's calibration clip 2 is nan at step 1"),
        (np.where(np.eye(9, 3), -1.0, 0.1), "clip 0 is -1.0 at step 1"),
        (np.full(9, 0.1), r"shape \(9,\)"),
        (np.full((0, 3), 0.1), "reach has 0 calibration clips"),
    ],
)
def test_impossible_calibrations_are_refused(errors, message):
    with pytest.raises(WhaleError, match=message):
        trust_of(reach=calibration(errors))
    for alpha in (0.0, 1.0, 2.0, float("nan")):
        with pytest.raises(WhaleError, match="alpha between 0 and 1"):
            trust_of(alpha=alpha, reach=calibration(np.full((9, 3), 0.1)))
    with pytest.raises(WhaleError, match="a calibration has tasks"):
        trust_of()


def test_the_advice_for_too_few_clips_works():
    assert trust_of(alpha=0.167, reach=calibration(np.arange(15.0).reshape(5, 3))).horizon(
        "reach", None, CONTEXT, 0.0
    ).bound(3).tolist() == [12, 13, 14]


def test_a_calibration_survives_its_file(tmp_path):
    trust = trust_of("abc", reach=rollouts(np.random.default_rng(0), 12))
    write_trust(tmp_path / "trust.json", trust)
    again = read_trust(tmp_path / "trust.json")
    assert again.to_json() == trust.to_json() and again.tasks["reach"].policies == ("expert",) * 12
    np.testing.assert_array_equal(again.tasks["reach"].errors, trust.tasks["reach"].errors)
    values = json.loads((tmp_path / "trust.json").read_text())
    for text in ("", "[]", "{}", json.dumps(values | {"format": "whale-trust/9"}), json.dumps(values | {"tasks": 3})):
        (tmp_path / "trust.json").write_text(text)
        with pytest.raises(WhaleError, match="holds no calibration .*--suite=trust"):
            read_trust(tmp_path / "trust.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model in a run with a calibration of two tasks, whose estimate is near its own entropy."""
    bare = tiny.random_world()
    run = tmp_path_factory.mktemp("run")
    model = dataclasses.replace(bare, source=run / "checkpoints" / "reward" / "1")
    future = model.imagine(*context())
    assert future.bound is None
    with pytest.raises(WhaleError, match="not calibrated; run `whale evaluate --checkpoint=DIR --suite=trust`"):
        future.trust_horizon(0.1)
    with pytest.raises(WhaleError, match="not calibrated"):
        model.imagine(*context(), task="reach")
    entropy = model.imagine(*context(9), uncertainty="entropy").uncertainty
    errors = np.linspace(0.05, 0.25, 9)[:, None] + 0.05 * np.arange(HORIZON)
    near, far = calibration(errors, entropy=entropy), calibration(errors + 0.1, entropy=entropy)
    place = Workdir(run / "trust").trust  # where `whale evaluate --suite=trust` has its report
    estimators = {"entropy": model.estimating(Entropy())}
    write_trust(place, trust_of(model.imagining, estimators=estimators, **{"door-close": near, "reach": far}))
    return dataclasses.replace(model)


def context(count=2, given=CONTEXT, steps=HORIZON):
    """Given frames and actions of the tiny model."""
    episodes = [tiny.episode(seed, given + steps, side=32) for seed in range(count)]
    frames = np.stack([episode.frames[:given] for episode in episodes])
    return frames, np.stack([episode.actions[: given - 1 + steps] for episode in episodes])


def test_futures_know_their_bound(model):
    future = model.imagine(*context(steps=5), task="reach")
    np.testing.assert_allclose(future.bound, [0.35, 0.4, 0.45, np.inf, np.inf])
    assert future.trust_horizon(0.41).tolist() == [2, 2] and future.trust_horizon(9.0).tolist() == [3, 3]
    np.testing.assert_allclose(model.imagine(*context(), task="door-close").bound, [0.25, 0.3, 0.35])
    assert model.imagine(*context()).bound.tolist() == model.imagine(*context(), task="reach").bound.tolist()
    for wrong in (-1, 0, float("nan"), "0.1", None, [0.1], np.array([0.1, 0.2])):
        with pytest.raises(WhaleError, match="a number above 0, not"):
            future.trust_horizon(wrong)
    for wrong in (["reach", "door-close"], 3):
        with pytest.raises(WhaleError, match="name one task"):
            model.imagine(*context(), task=wrong)
    with pytest.raises(WhaleError, match="did you mean reach"):
        model.imagine(*context(), task="reech")


def test_the_uncertainty_that_was_calibrated_decides_by_its_clock(model):
    future = model.imagine(*context(9), uncertainty="entropy", task="reach")
    clips = future.trust.tasks["reach"]
    end = limit(clips.errors, clips.clock("entropy"), 0.38, 0.1)
    expected = (clock_of(future.uncertainty) < end).sum(1)
    assert future.trust.clock == "entropy" and future.trust_horizon(0.38).tolist() == expected.tolist()
    assert len(set(expected)) > 1  # rollouts differ
    assert model.imagine(*context(), uncertainty="retracing", task="reach").trust.clock == STEPS


def test_an_estimate_of_other_settings_or_of_another_component_was_not_calibrated():
    model = tiny.random_world(32, members=2)
    other = dataclasses.replace(model, params=model.params | {"ensemble": jax.tree.map(lambda x: x + 1, model.params)})
    plain, apart = (resolve(text, model.action_spec) for text in ("retracing", "retracing:steps=0-2"))
    assert other.imagining == model.imagining and other.estimating(plain) == model.estimating(plain)
    assert model.estimating(plain) != model.estimating(apart)
    assert model.estimating(Ensemble()) != other.estimating(Ensemble()) and model.estimating(None) is None


def test_of_several_calibrations_the_one_of_such_dreams_counts(model, tmp_path):
    clips = calibration(np.full((9, 3), 0.1))
    run = dataclasses.replace(model, source=tmp_path / "checkpoints" / "reward" / "1")
    for given in (2, CONTEXT, 1):
        write_trust(tmp_path / f"of_{given}" / "trust.json", trust_of(model.imagining, context=given, reach=clips))
    for given in (1, 2, CONTEXT):
        assert run.imagine(*context(given=given)).trust.trust.context == given
    with pytest.raises(WhaleError, match="context=3 and an --output of its own"):
        run.imagine(*context(given=3), task="reach")


def test_another_robot_s_calibration_is_not_this_one_s(model, tmp_path):
    spec = dataclasses.replace(model.action_spec, high=tuple(2 * x for x in model.action_spec.high))
    other = dataclasses.replace(model, action_spec=spec)
    with pytest.raises(WhaleError, match="was calibrated for other actions"):
        other.imagine(*context(), task="reach")


def test_what_was_imagined_otherwise_is_not_bounded(model):
    future = model.imagine(*context(given=2))
    assert future.bound is None
    with pytest.raises(WhaleError, match="with the context 4, so .*; take 4, or .*evaluation.trust.context=2"):
        future.trust_horizon(0.1)
    warm = model.imagine(*context(), temperature=1.0, key=jax.random.key(0))
    with pytest.raises(WhaleError, match="temperature 0,"):
        warm.trust_horizon(0.1)


def test_only_the_parameters_that_frames_depend_on_have_to_be_those_that_were_calibrated(model):
    def doubled(name):
        params = model.params | {name: jax.tree.map(lambda x: 2 * x, model.params[name])}
        return dataclasses.replace(model, params=params)

    assert doubled("reward").imagine(*context()).bound is not None
    with pytest.raises(WhaleError, match="with other parameters or another decoding, so it is not used; calib"):
        doubled("dynamics").imagine(*context()).trust_horizon(0.1)


def test_a_calibration_elsewhere_is_named(model, tmp_path):
    place = tmp_path / "trust.json"
    write_trust(place, model.imagine(*context()).trust.trust)
    alone = dataclasses.replace(model, source=Path("tiny/checkpoints/reward/1"), trust_file=place)
    assert alone.imagine(*context()).bound is not None


def test_a_calibration_that_is_named_has_to_be_of_these_parameters(trained, tmp_path):
    errors = np.full((9, 3), 0.1)
    for name, model in (("mine", load(trained[0]).imagining), ("other", "another")):
        write_trust(tmp_path / f"{name}.json", trust_of(model, reach=calibration(errors)))
    frames, actions = np.zeros((1, CONTEXT, 16, 16, 3), np.uint8), np.zeros((1, CONTEXT + 2, 4), np.float32)
    future = load(trained[0], trust=tmp_path / "mine.json").imagine(frames, actions)
    np.testing.assert_allclose(future.bound, [0.1] * 3)
    with pytest.raises(WhaleError, match="other.json was calibrated with other parameters"):
        load(trained[0], trust=tmp_path / "other.json")
    with pytest.raises(WhaleError, match="trust.json holds no calibration"):
        load(trained[0], trust=tmp_path / "trust.json")


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("dreams"), side=32))


def dreams(model, episodes, **changes):
    settings = {"context": CONTEXT, "horizon": 5, "uncertainty": "", "autoreset_mode": "Disabled"} | changes
    return DreamVectorEnv(model, 3, episodes, **settings)


def test_a_dream_ends_with_the_first_step_that_is_not_trusted(model, episodes):
    envs = dreams(model, episodes, tasks="reach", max_error=0.41)
    assert envs.dream.clock == STEPS
    envs.reset(seed=0)
    ends = [envs.step(np.zeros((3, 4), np.float32)) for _ in range(3)]
    assert [end[3].tolist() for end in ends] == [[False] * 3, [False] * 3, [True] * 3]
    assert [end[4]["trusted"].tolist() for end in ends] == [[True] * 3, [True] * 3, [False] * 3]
    # Beyond what was calibrated, nothing is trusted.
    envs = dreams(model, episodes, tasks="reach", max_error=9.0)
    envs.reset(seed=0)
    assert [envs.step(np.zeros((3, 4), np.float32))[3].all() for _ in range(4)] == [False, False, False, True]


def test_dreams_of_several_tasks_each_have_their_own_limit(model, episodes):
    envs = dreams(model, episodes, max_error=0.38)
    records = [episodes.select("train").records[i]["task"] for i in envs.dream.origins[:, 0]]
    starts = [records.index("reach"), records.index("door-close"), records.index("reach")]
    envs.reset(seed=0, options={"start": starts})
    trusted = [envs.step(np.zeros((3, 4), np.float32))[4]["trusted"].tolist()]
    envs.reset(options={"reset_mask": np.array([True, False, True]), "start": starts})
    trusted += [envs.step(np.zeros((3, 4), np.float32))[4]["trusted"].tolist() for _ in range(2)]
    assert trusted == [[True] * 3, [True] * 3, [False, True, False]]


def test_dreams_and_futures_are_trusted_for_equally_long(model, episodes):
    envs = dreams(model, episodes, tasks="reach", max_error=0.38, uncertainty="entropy")
    assert envs.dream.clock == "entropy"
    store, still, ends = episodes.select("train", "reach"), np.zeros((3, 4), np.float32), []
    for start in range(8):
        envs.reset(seed=0, options={"start": start})
        done = 0
        while not envs.step(still)[3].any():
            done += 1
        index, first = envs.dream.origins[start]
        episode = store.read(int(index))
        actions = np.concatenate([episode.actions[first : first + CONTEXT - 1], np.zeros((4, 4), np.float32)])
        frames = episode.frames[None, first : first + CONTEXT]
        future = model.imagine(frames, actions[None], uncertainty="entropy", task="reach")
        assert future.trust_horizon(0.38).tolist() == [done]
        ends.append(done)
    assert len(set(ends)) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_error": 0.0}, "above 0"),
        ({"max_error": 0.2}, "With max_error=0.2 no step of reach is trusted: .* within 0.35 in 90 % of rollouts"),
        ({"max_error": 0.4, "context": 2}, "calibrated with the context 4"),
        ({"max_error": 0.4, "checkpoint": "bare"}, "not calibrated; run `whale evaluate"),
    ],
)
def test_dreams_that_nothing_was_calibrated_for_are_refused(model, episodes, changes, message):
    bare = LoadedModel(model.world, model.params, model.action_spec, model.meta, Path("tiny/checkpoints/reward/1"))
    chosen = bare if changes.pop("checkpoint", None) else model
    with pytest.raises(error.Error, match=message):
        dreams(chosen, episodes, tasks="reach", **changes)
