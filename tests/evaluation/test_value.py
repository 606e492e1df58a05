"""The value suite on real rollouts: returns, ranking, what is kept, and policies that misbehave."""

import dataclasses
import json
import shutil
import time

import numpy as np
import pytest
import tiny
from scipy import stats

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import ProtocolSettings, read_clips
from whale_jax.evaluation.evaluate import evaluate, rescore
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.summary import outcome, statements
from whale_jax.evaluation.value import embeddings
from whale_jax.evaluation.value import policies as own
from whale_jax.evaluation.value.scoring import score
from whale_jax.evaluation.value.suite import Value, ValueSettings
from whale_jax.evaluation.video import metrics as video
from whale_jax.evaluation.video.suite import VideoSettings
from whale_jax.imagination.world import LoadedModel

SIDE = 32
SETTINGS = ValueSettings(context=2, horizon=6, episodes=3, batch_size=2, draws=50)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=12, side=SIDE, each=3))


@pytest.fixture(scope="module")
def store(recorded):
    return recorded.held_out()


@pytest.fixture(scope="module")
def world():
    world = tiny.random_world(SIDE)
    recording = {"tasks": ["reach"], "camera": "corner", "action_repeat": 2}
    config = {"data": {"record": recording}, "model": {"image_size": SIDE}, "seed": 0}
    return LoadedModel(
        world.world, world.params, world.action_spec, dataclasses.replace(world.meta, config=config), world.source
    )


def evaluate_value(world, store, settings, output, policies=None, training=None):
    """The value suite's result alone."""
    return Value().run(Job(world, store, output, settings=settings, policies=policies or {}, training=training))


@pytest.fixture(scope="module")
def written(world, store, recorded, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    return evaluate(Job(world, store, output, training=recorded.select(split="train")), {"value": SETTINGS}), output


def test_returns_are_sums_of_rewards_over_the_horizon(written, world, store):
    entry = written[0]["value"]["tasks"][tiny.TASKS[0]]["policies"]
    clips = next(c for c in read_clips(store, SETTINGS) if c.task == tiny.TASKS[0])
    got = entry[clips.policy]
    assert got["outcome"] == "ok" and got["mode"] == "open loop" and len(got["true"]) == 3
    chosen = store.select(tasks=clips.task, policies=clips.policy)
    np.testing.assert_allclose(got["true"], [chosen.read(i).rewards[1:7].sum() for i in range(3)], rtol=1e-6)
    future = world.imagine(clips.frames[:, :2], clips.actions, uncertainty="entropy")
    np.testing.assert_allclose(got["imagined"], future.rewards.sum(1), rtol=1e-4)
    np.testing.assert_allclose(got["uncertainty"], future.uncertainty.mean(1), rtol=1e-4)
    assert got["success"] == [bool(chosen.read(i).success[1:7].any()) for i in range(3)]
    np.testing.assert_allclose(got["frames"]["psnr"], video.psnr(clips.frames[:, 2:], future.frames).mean(0), rtol=1e-4)
    assert {"lpips", "moving_ssim"} <= set(got["frames"]) & set(got["frames"]["repeat_last_frame"])


def test_policies_and_trajectories_are_ranked(written):
    value = written[0]["value"]
    for task in tiny.TASKS:
        entry = value["tasks"][task]
        pairs = [(each["true"], each["imagined"]) for each in entry["policies"].values()]
        true, imagined = (np.array(side) for side in zip(*pairs, strict=True))
        wanted = stats.spearmanr(true.ravel(), imagined.ravel()).statistic
        assert entry["by_trajectories"]["rank_correlation"]["interval"][0] == pytest.approx(wanted)
        wanted = stats.spearmanr(true.mean(1), imagined.mean(1)).statistic
        assert entry["by_policies"]["rank_correlation"]["interval"][0] == pytest.approx(wanted)
    means = [value["tasks"][t]["by_policies"]["value_gap"]["interval"][0] for t in tiny.TASKS]
    assert value["mean"]["by_policies"]["value_gap"][0] == pytest.approx(np.mean(means))


def test_the_report_names_every_policy_and_shows_its_film(written):
    metrics, output = written
    page = (output / "report.html").read_text()
    for name, each in metrics["value"]["tasks"][tiny.TASKS[0]]["policies"].items():
        assert name in page and len(set(each["films"])) == len(each["true"])
        assert all((output / film).stat().st_size > 500 for film in each["films"])
    assert page.count("<video") == sum(len(t["policies"]) for t in metrics["value"]["tasks"].values())
    assert "policies rank with a correlation of" in " ".join(statements(metrics))
    assert outcome(metrics)["value"]["mean"] == metrics["value"]["mean"]
    assert len(metrics["protocol"]["checkpoint"]["sha256"]) == 64


def test_the_reward_model_is_compared_with_recorded_rewards(written, world, store):
    metrics, output = written
    for task in tiny.TASKS:
        found = metrics["value"]["tasks"][task]["rewards"]
        clips = [c for c in read_clips(store, SETTINGS) if c.task == task]
        true = np.concatenate([c.rewards for c in clips]).astype(float)
        actions = np.concatenate([world.action_spec.normalise(c.actions[:, 1:]) for c in clips]).reshape(-1, 4)
        frames = np.concatenate([c.frames for c in clips])
        decoded = world.reconstruct(frames)
        head, imagined = world.world.heads_by_name["reward"], [world.imagine(c.frames[:, :2], c.actions) for c in clips]
        read = {"imagined": np.concatenate([future.rewards for future in imagined])}
        for name, films in (("real", frames), ("reconstruction", decoded)):
            pairs = (films[:, 1:-1].reshape(-1, SIDE, SIDE, 3), actions, films[:, 2:].reshape(-1, SIDE, SIDE, 3))
            read[name] = np.asarray(head.read(world.params["reward"], *pairs)).reshape(true.shape)
        assert found["steps"] == true.size and found["true"] == pytest.approx(true.mean(), abs=1e-4)
        for name, rewards in read.items():
            rewards = np.float64(rewards)
            assert found[name]["bias"] == pytest.approx((rewards - true).mean(), rel=1e-3, abs=1e-3), name
            assert found[name]["error"] == pytest.approx(abs(rewards - true).mean(), rel=1e-3, abs=1e-3), name
            curve = found[name]["curve"]
            assert len(curve["read"]) == len(curve["true"]) == 10 and curve["read"] == sorted(curve["read"])
            assert np.mean(curve["true"]) == pytest.approx(true.mean(), rel=0.1)
    assert not any("steps" in each for each in metrics["value"]["tasks"][tiny.TASKS[0]]["policies"].values())
    assert "The reward model&#x27;s mean absolute error is" in (output / "report.html").read_text()
    assert "How reliable is the reward model?" in (output / "report.html").read_text()


def test_scoring_anew_needs_no_model_and_gives_the_same(written, tmp_path):
    metrics, output = written
    again, place = rescore(output, tmp_path / "again")
    assert again["value"] == json.loads(json.dumps(metrics["value"])) and (place / "report.html").exists()
    with pytest.raises(WhaleError, match="There is no .*name the metrics.json"):
        rescore(tmp_path / "nothing")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(WhaleError, match="is not JSON"):
        rescore(tmp_path)


@pytest.mark.slow
def test_what_is_kept_is_used_until_something_changes(world, store, tmp_path, monkeypatch):
    imagined = []
    original = LoadedModel.imagine
    monkeypatch.setattr(LoadedModel, "imagine", lambda self, *a, **k: imagined.append(1) or original(self, *a, **k))
    first = evaluate_value(world, store, SETTINGS, tmp_path)
    calls = len(imagined)
    assert evaluate_value(world, store, SETTINGS, tmp_path) == first and len(imagined) == calls
    next(tmp_path.glob("films/*")).unlink()
    evaluate_value(world, store, SETTINGS, tmp_path)
    assert calls < len(imagined) < 2 * calls
    before = len(imagined)
    evaluate_value(world, store, dataclasses.replace(SETTINGS, horizon=5), tmp_path)
    assert len(imagined) == before + calls


def test_the_fingerprint_is_of_every_parameter(world):
    reordered = dataclasses.replace(world, params=dict(reversed(world.params.items())))
    changed = dataclasses.replace(world, params={**world.params, "reward": {"head": {"bias": np.zeros(3)}}})
    assert world.fingerprint == reordered.fingerprint != changed.fingerprint


def test_the_shift_is_a_policy_s_distance_to_the_nearest_of_training(world, recorded):
    training, groups = recorded.select(split="train"), world.world.settings.behaviour.groups
    clips = read_clips(recorded.held_out(), dataclasses.replace(SETTINGS, horizon=7))[0]
    known = embeddings.training_embeddings(world, training, clips.task, episodes=3)
    rows = embeddings.embed(world, clips.frames, clips.actions)
    plane = embeddings.describe({clips.task: known}, {clips.task: {clips.policy: rows}}, groups)[0][clips.task]

    def mean_probabilities(policy, leave_out=None):
        chosen = training.select(tasks=clips.task, policies=policy)
        read = [chosen.read(i) for i in range(3) if i != leave_out]
        return np.mean([np.square(embeddings.embed(world, e.frames[None], e.actions[None])[0]) for e in read], axis=0)

    def nearest(row, centres):
        return min(np.sqrt(max(0.0, 1 - np.sqrt(np.square(row) * centre).sum() / groups)) for centre in centres)

    policies = tiny.POLICIES["train"]
    wanted = [nearest(row, [mean_probabilities(policy) for policy in policies]) for row in rows]
    np.testing.assert_allclose(plane["shift"][clips.policy], wanted, atol=1e-3)
    left_out = [
        nearest(known[own][i], [mean_probabilities(policy, i if policy == own else None) for policy in policies])
        for own in policies
        for i in range(3)
    ]
    np.testing.assert_allclose(embeddings.training_shifts(known, groups), left_out, atol=1e-3)
    assert plane["training_shift"]["median"] == pytest.approx(np.median(left_out), abs=1e-3)
    assert set(plane["points"]) == {clips.policy, *(f"training: {name}" for name in policies)}
    assert embeddings.training_embeddings(world, training, "hammer", 3) == {}


def test_one_episode_alone_still_has_a_plane(world):
    plane = embeddings.describe({}, {"reach": {"expert": np.ones((1, 16), np.float32)}}, 4)[0]["reach"]
    assert plane == {"points": {"expert": [[0.0, 0.0]]}, "explained": [0.0, 0.0]}


@pytest.mark.parametrize(
    ("split", "horizon", "note"),
    [
        (None, 7, "No training episodes here"),
        ("reach", 7, "No training episodes of door-close, so shifts there are unknown."),
        ("train", 6, "a behaviour model and episodes of 8 steps"),
    ],
)
def test_behaviours_that_cannot_be_described_are_noted(split, horizon, note, world, recorded, store, tmp_path):
    training = {None: None, "train": recorded.select(split="train")}.get(split, recorded.select(tasks="reach"))
    settings = dataclasses.replace(SETTINGS, horizon=horizon, episodes=1)
    value = evaluate_value(world, store.select(tasks="door-close"), settings, tmp_path, training=training)
    assert note in value["notes"][0]
    assert "shift" not in value["tasks"]["door-close"].get("behaviour", {})


def test_short_episodes_are_counted_and_left_out(world, store, tmp_path):
    with pytest.raises(WhaleError, match="has the 14 steps .* the longest has 12"):
        evaluate_value(world, store, dataclasses.replace(SETTINGS, horizon=13), tmp_path)
    records = [dict(record, length=3) if i == 0 else record for i, record in enumerate(store.records)]
    partly = type(store)(store.root, store.info, records)
    assert evaluate_value(world, partly, SETTINGS, tmp_path)["notes"] == [
        f"1 of {len(records)} episodes are shorter than 7 steps and were left out.",
        "Behaviours are not described: that takes a behaviour model and episodes of 8 steps.",
    ]


def test_without_a_reward_model(world, store, tmp_path):
    params = {name: each for name, each in world.params.items() if name != "reward"}
    bare = LoadedModel(world.world, params, world.action_spec, world.meta, world.source)
    with pytest.raises(WhaleError, match="holds no reward model"):
        evaluate(Job(bare, store, tmp_path), {"value": SETTINGS})
    assert not list(tmp_path.iterdir())


def test_fewer_than_two_policies_are_not_ranked():
    ok = {"outcome": "ok", "starts": [0, 1], "true": [1.0, 2.0], "imagined": [1.0, 1.0]}
    bad = {"mode": "closed loop", "outcome": "in the model: raised ValueError: no"}
    other = ok | {"true": [3.0, 4.0], "imagined": [2.0, 3.0]}
    tasks = {"reach": {"policies": {"a": ok, "b": bad}}, "hammer": {"policies": {"a": ok, "c": other}}}
    report = score(tasks, draws=20, seed=0)
    assert "by_policies" in report["tasks"]["hammer"] and "outcome" not in report["tasks"]["hammer"]
    lonely = "not ranked: 1 of its policies came through, and it takes two"
    assert report["failed"] == ["reach, b: in the model: raised ValueError: no", f"reach: {lonely}"]


def test_returns_that_do_not_differ_are_named_and_the_rest_is_scored():
    a = {"outcome": "ok", "starts": [0, 1], "true": [1.0, 1.0], "imagined": [1.0, 2.0]}
    b = a | {"imagined": [0.0, 1.0]}
    report = score({"reach": {"policies": {"a": a, "b": b}}, "hammer": {"policies": {"a": a, "b": a}}}, 20, 0)
    assert report["tasks"]["reach"]["by_policies"]["rank_correlation"]["interval"] == [None] * 3
    assert report["tasks"]["reach"]["by_policies"]["value_gap"]["interval"][0] == pytest.approx(0.5)
    assert report["failed"] == [
        "reach: correlations over policies are undefined: all true returns are equal; "
        "correlations over trajectories are undefined: all true returns are equal",
        "hammer: correlations over policies are undefined: all true and imagined returns are equal; "
        "correlations over trajectories are undefined: all true returns are equal",
    ]


def test_the_mean_is_of_the_tasks_that_are_defined_and_so_is_its_floor():
    def entry(imagined):
        policies = {f"p{i}": {"outcome": "ok", "starts": [0], "true": [float(i)], "imagined": [x]} for i, x in imagined}
        return {"policies": policies}

    good, poor = entry(enumerate([0.0, 1.0, 2.0, 3.0])), entry(enumerate([1.0, 0.0, 3.0, 2.0]))
    report = score({"a": good, "b": poor, "c": entry(enumerate([1.0] * 4))}, draws=2000, seed=0)
    assert report["mean"]["by_policies"]["rank_correlation"] == [pytest.approx(0.8), None, None]
    alone = report["tasks"]["a"]["by_policies"]["rank_correlation"]["floor"][2]
    together = report["mean_floor"]["by_policies"]["rank_correlation"][2]
    assert together < alone - 0.1, "chance averages out over tasks"


def test_trials_are_matched_by_their_starts():
    full = {"outcome": "ok", "starts": [0, 1, 2], "true": [1.0, 5.0, 9.0], "imagined": [1.0, 5.0, 9.0]}
    part = {"outcome": "ok", "starts": [1], "true": [4.0], "imagined": [4.0]}
    report = score({"a": {"policies": {"full": full, "part": part}}}, draws=10, seed=0)["tasks"]["a"]
    assert report["by_policies"]["top_1"]["interval"][0] == 1.0 and len(report["by_policies"]) == 8
    apart = {name: each | {"starts": None} for name, each in (("full", full), ("part", part))}
    report = score({"a": {"policies": apart}}, draws=50, seed=0)["tasks"]["a"]["by_policies"]["value_gap"]
    assert report["interval"][0] == 0.0


def test_a_suite_that_cannot_run_leaves_the_others(world, store, tmp_path):
    clips = ProtocolSettings(context=2, horizon=4, episodes=1, batch_size=2, start=-1)
    settings = {"value": dataclasses.replace(SETTINGS, horizon=13), "video": VideoSettings()}
    metrics = evaluate(Job(world, store, tmp_path, clips), settings)
    assert "video" in metrics and "value" not in metrics
    assert [text.split(":")[0] for text in metrics["failed"]] == ["value", "FVD"]
    assert "at least 10 frames a clip, these have 4" in metrics["fvd"]["outcome"]
    assert "Not measured: value: No episode" in statements(metrics)[-1]
    assert "at least 10 frames a clip" in (tmp_path / "report.html").read_text()


def test_suites_that_are_not_run_stay_as_they_were_of_the_same_parameters(written, world, store, tmp_path):
    shutil.copytree(written[1], tmp_path / "again")
    job = Job(world, store, tmp_path / "again", ProtocolSettings(context=2, horizon=3, episodes=1, batch_size=2))
    metrics = evaluate(job, {"video": VideoSettings(fvd=False)})
    assert metrics["value"] == json.loads(json.dumps(written[0]["value"])) and metrics["protocol"]["horizon"] == 3
    other = dataclasses.replace(world, params={**world.params, "reward": {"head": {"bias": np.zeros(3)}}})
    del other.params["reward"]
    assert "value" not in evaluate(dataclasses.replace(job, model=other), {"video": VideoSettings(fvd=False)})


def up(frames, key):
    return np.tile(np.array([0, 0, 1, 0], np.float32), (len(frames), 1))


def raising(frames, key):
    raise ValueError("lost")


def unfinished(frames, key):
    time.sleep(30)


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (raising, "raised ValueError: lost"),
        (lambda frames, key: np.zeros(4), r"shape \(4,\), not \(2, 4\)"),
        (lambda frames, key: np.full((2, 4), np.nan), "not finite"),
        (lambda frames, key: np.full((2, 4), 7.0), "outside"),
        (lambda frames, key: "up", "raised ValueError"),
        (unfinished, "gave no action within 0.5 s"),
    ],
)
def test_policies_that_misbehave_are_named(policy, says, world):
    guarded = own.Guarded(policy, world.action_spec, patience=0.5)
    with pytest.raises(own.PolicyFailure, match=says):
        guarded(np.zeros((2, SIDE, SIDE, 3), np.uint8), None)


def test_policies_are_found_by_name(monkeypatch, tmp_path):
    (tmp_path / "mine_for_test.py").write_text(
        "class Robot:\n    @staticmethod\n    def act(frames, key): return 1\nnine = 9\n"
    )
    monkeypatch.chdir(tmp_path)
    assert own.find_policy("mine_for_test:Robot.act")(None, None) == 1
    for name, says in (
        ("mine_for_test", "module:callable"),
        ("mine_for_test:nothing", "cannot be loaded"),
        ("not_there:act", "cannot be loaded .ModuleNotFoundError"),
        ("mine_for_test:nine", "int and cannot be called"),
    ):
        with pytest.raises(WhaleError, match=says):
            own.find_policy(name)


def test_a_policy_of_frames_acts_in_the_simulator_and_in_the_model(world, store, tmp_path):
    pytest.importorskip("metaworld")
    from whale_jax.data.metaworld.record import episode_seed
    from whale_jax.data.metaworld.simulator import Simulator

    task = tiny.TASKS[0]
    one = store.select(tasks=task)
    value = evaluate_value(world, one, SETTINGS, tmp_path, {"tests:up": up, "tests:raising": raising})
    entry = value["tasks"][task]["policies"]
    assert entry["tests:up"]["mode"] == "closed loop" and entry["tests:up"]["outcome"] == "ok"
    simulator = Simulator(task, image_size=16)
    simulator.reset(episode_seed(0, "ranked", task, "", 2))
    rewards = [simulator.hold(up([0], None)[0], 2)[1] for _ in range(7)]
    simulator.close()
    assert entry["tests:up"]["true"][2] == pytest.approx(sum(rewards[1:]), rel=1e-6)
    assert entry["tests:raising"]["outcome"] == "in the simulator: raised ValueError: lost"
    assert value["failed"] == [f"{task}, tests:raising: in the simulator: raised ValueError: lost"]
    assert "by_policies" in value["tasks"][task]
