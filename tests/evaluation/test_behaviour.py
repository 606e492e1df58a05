"""The behaviour suite: what it reads off the embedding, what that is worth, and the map of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.batch import example
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.behaviour import measures
from whale_jax.evaluation.behaviour.chosen import choose, infer, surprises
from whale_jax.evaluation.behaviour.section import _claims
from whale_jax.evaluation.behaviour.suite import NONE, OTHER, OWN, Behaviour, BehaviourSettings, one_hot
from whale_jax.evaluation.behaviour.tsne import conditional, tsne
from whale_jax.evaluation.evaluate import evaluate, seen
from whale_jax.evaluation.report.scatter import scatter
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.summary import statements
from whale_jax.models.whale.model import Whale
from whale_jax.models.whale.stages import DynamicsStage
from whale_jax.training.settings import StageSettings

SIDE = 32
SETTINGS = BehaviourSettings(clips=2, batch_size=3, draws=200, seed=0)
CONFIG = {"stages": {"behaviour": {"steps": 200}, "dynamics": {"steps": 3000}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=12, side=SIDE))


@pytest.fixture(scope="module")
def world():
    model = tiny.random_world(SIDE)
    return dataclasses.replace(model, meta=dataclasses.replace(model.meta, config=CONFIG))


@pytest.fixture(scope="module")
def chosen(store):
    return choose(store.held_out(), frames=8, episodes=10, clips=2)


def named(*pairs: tuple[str, str, int]) -> tuple[np.ndarray, ...]:
    """Tasks, policies and episodes of clips, two of each episode."""
    rows = [(task, policy, 100 * i + e) for i, (task, policy, count) in enumerate(pairs) for e in range(count)]
    return tuple(np.repeat([row[i] for row in rows], 2) for i in range(3))


def test_another_clip_is_of_the_same_task_by_another_policy():
    tasks, policies, episodes = named(("a", "x", 2), ("a", "y", 3), ("b", "x", 2), ("b", "y", 1))
    others = measures.other_clips(tasks, policies)
    assert (tasks[others] == tasks).all() and (policies[others] != policies).all()
    tasks, policies, episodes = named(("a", "x", 3))
    assert (episodes[measures.other_clips(tasks, policies)] != episodes).all(), "one policy: another episode"


@pytest.mark.parametrize("each", [1, 2, 3])
def test_halves_keep_episodes_whole_and_have_every_policy(each):
    tasks, policies, episodes = named(*((t, p, each) for t in "ab" for p in "xyzw"))
    half = measures.halves(tasks, policies, episodes)
    for episode in np.unique(episodes):
        assert len(np.unique(half[episodes == episode])) == 1
    for policy in "xyzw":
        assert set(half[policies == policy]) == {0, 1}


def probed(features, tasks, policies, episodes, untrained=None):
    untrained = np.zeros_like(features) if untrained is None else untrained
    half = measures.halves(tasks, policies, episodes)
    return measures.Probed(features, untrained, tasks, policies, episodes, half, draws=200, seed=0)


def test_a_probe_reads_a_linear_label_and_not_what_only_names_the_episode():
    tasks, policies, episodes = named(*((t, p, 8) for t in "ab" for p in "xyz"))
    rng = np.random.default_rng(0)
    telling = np.eye(3)[np.unique(policies, return_inverse=True)[1]] + 0.1 * rng.normal(size=(len(tasks), 3))
    found = measures.probe(probed(telling, tasks, policies, episodes), policies)
    assert found["accuracy"][0] == 1.0 and measures.tells(found) and found["chance"] == pytest.approx(1 / 3)
    names = np.eye(len(np.unique(episodes)))[np.unique(episodes, return_inverse=True)[1]]
    found = measures.probe(probed(names, tasks, policies, episodes), policies)
    assert found["accuracy"][0] < 0.5 and not measures.tells(found)


def test_clips_of_training_help_to_fit_a_probe_and_are_not_counted():
    """Two held-out episodes teach a probe nothing of noisy features; those of training do, and mislead if they lie."""
    tasks, policies, episodes = named(*(("a", p, 40) for p in "xyz"))
    rng = np.random.default_rng(0)
    telling = np.eye(3)[np.unique(policies, return_inverse=True)[1]] + 0.5 * rng.normal(size=(len(tasks), 3))
    features = np.concatenate([telling, rng.normal(size=(len(tasks), 40))], axis=1)
    held = np.concatenate([np.flatnonzero(policies == p)[:4] for p in "xyz"])
    few = probed(features[held], tasks[held], policies[held], episodes[held])
    half = np.full(len(tasks), measures.FITTED)
    half[held] = few.half
    known = dataclasses.replace(probed(features, tasks, policies, episodes), half=half)
    found = measures.probe(known, policies)
    assert found["accuracy"][0] > measures.probe(few, policies[held])["accuracy"][0] + 0.2 and found["majority"] < 0.4
    wrong = np.where((half == measures.FITTED) & (policies == "x"), "y", policies)
    assert measures.probe(known, wrong)["accuracy"][0] < found["accuracy"][0] - 0.2


def test_what_the_untrained_network_tells_as_well_is_not_learnt():
    tasks, policies, episodes = named(*((t, p, 8) for t in "ab" for p in "xyz"))
    telling = np.eye(3)[np.unique(policies, return_inverse=True)[1]]
    found = measures.probe(probed(telling, tasks, policies, episodes, untrained=telling), policies)
    assert found["accuracy"][1] > found["chance"] and found["gain"] == [0, 0, 0] and not measures.tells(found)


def test_labels_that_cannot_be_read_are_left_out():
    tasks, policies, episodes = named(("a", "x", 4), ("a", "y", 4))
    given = probed(np.ones((16, 2)), tasks, policies, episodes)
    assert measures.probe(given, tasks) is None, "one task"
    alone = dataclasses.replace(given, half=np.zeros(16, int))
    assert measures.probe(alone, policies) is None, "nothing to fit on"


def test_the_claims_are_tested_among_the_clips_that_they_are_about():
    """Experts differ by task and random policies do not; the noisy expert lies a quarter of the way."""
    tasks, policies, episodes = named(*((t, p, 6) for t in "ab" for p in ("expert", "random", "expert-noise-0.3")))
    features = np.zeros((len(tasks), 4))
    features[:, 0] = policies == "random"
    features[policies == "expert-noise-0.3", 0] = 0.25
    features[policies == "expert-noise-0.3", 1] = 0.1
    features[(policies == "expert") & (tasks == "b"), 2] = 1.0
    found = measures.claims(probed(features, tasks, policies, episodes), features[:, :2])
    told = {name for name in found if name != "noisy" and measures.above_chance(found[name])}
    assert told == {"policies of a task", "experts of the tasks"}
    assert "random of the tasks" in found
    sentences = _claims(found)
    assert len(sentences) == 4 and all("So it is here" in each for each in sentences)
    swapped = found | {"experts of the tasks": found["random of the tasks"]}
    assert "Not so here" in _claims(swapped)[1]
    assert "Not so here" in _claims({"noisy": {"expert-noise-0.3": {"position": 1.2, "off": 0.1}}})[0]
    assert found["noisy"] == {"expert-noise-0.3": pytest.approx({"position": 0.25, "off": 0.1})}


def test_intervals_draw_episodes_and_differences_are_paired():
    rng = np.random.default_rng(0)
    episodes = np.repeat(np.arange(6), 50)
    values = np.repeat(rng.normal(size=6), 50)
    value, low, high = measures.mean_interval(values, episodes, 500, 0)
    assert high - low > values.std() / 3, "300 clips of six episodes are six, not three hundred"
    found = measures.cross_entropies({OWN: values, OTHER: values + 0.5}, episodes, 500, 0)
    assert found["worse"][OTHER] == pytest.approx([0.5, 0.5, 0.5]) and found["clips"] == 300
    assert found["mean"][OWN] == pytest.approx([value, low, high])


def test_neighbours_have_the_perplexity_that_is_asked_for():
    points = np.random.default_rng(0).normal(size=(60, 5)) * np.linspace(0.01, 100, 60)[:, None]
    p = conditional(points, 12.0)
    np.testing.assert_allclose(p.sum(1), 1.0)
    np.testing.assert_allclose(-(p * np.log(np.maximum(p, 1e-300))).sum(1), np.log(12.0), atol=1e-6)
    assert not np.diag(p).any()


def test_clusters_stay_apart_on_the_map_and_the_same_points_give_the_same_map():
    rng = np.random.default_rng(1)
    label = np.repeat(np.arange(4), 25)
    points = 6.0 * rng.normal(size=(4, 20))[label] + rng.normal(size=(100, 20))
    found = tsne(points)
    distances = np.linalg.norm(found[:, None] - found[None], axis=-1) + 1e9 * np.eye(100)
    assert (label[distances.argmin(1)] == label).all()
    centres = np.stack([found[label == k].mean(0) for k in range(4)])
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[~np.eye(4, dtype=bool)].min()
    assert apart > 2 * max(found[label == k].std() for k in range(4))
    np.testing.assert_array_equal(found, tsne(points))
    assert np.isfinite(tsne(np.ones((5, 3)))).all() and tsne(rng.normal(size=(2, 1))).shape == (2, 2)


def test_groups_of_a_scatter_plot_differ_in_shape_and_colour():
    groups = {name: np.full((2, 2), i, float) for i, name in enumerate("abc<")}
    svg = scatter("a title", groups | {"empty": np.zeros((0, 2))}, np.concatenate(list(groups.values())))
    looks = {svg.split(f"<title>{name}</title>")[1].split("/>")[0].split(" d=")[1] for name in ("a", "b", "c", "&lt;")}
    assert len(looks) == 4 and "empty" not in svg and svg.count("<li>") == 4


def test_clips_are_spread_over_episodes_and_the_last_batch_is_filled(store, chosen):
    assert chosen.pairs.tolist()[:4] == [[0, 0], [0, 5], [1, 0], [1, 5]] and len(chosen.pairs) == 16
    batches = list(chosen.batches(3))
    assert [rows.tolist() for rows, *_ in batches][-1] == [15, 15, 15]
    _, frames, actions = batches[0]
    episode = chosen.store.read(0)
    np.testing.assert_array_equal(frames[1], episode.frames[5:13])
    np.testing.assert_array_equal(actions[1], episode.actions[5:12])
    assert len(choose(store, frames=14, episodes=1, clips=2).pairs) == 0


def test_clips_of_an_episode_start_a_quarter_of_a_clip_apart_or_more(store):
    for frames in range(1, 14):
        pairs = choose(store, frames, episodes=1, clips=20).pairs
        starts = pairs[pairs[:, 0] == 0, 1]
        assert starts[0] == 0 and len(starts) <= 20 and (np.diff(starts) >= max(1, frames // 4)).all()


@pytest.mark.slow
def test_z_is_what_a_rollout_infers(world, chosen):
    found = infer(world, chosen, 3)
    _, frames, actions = next(chosen.batches(16))
    normal = world.action_spec.normalise(actions).astype(np.float32)
    window = jax.jit(world.world.model.start)(world.params, frames, normal)
    assert found.shape == (16, 8, 4, 4)
    np.testing.assert_array_equal(np.asarray(window.z), one_hot(found).reshape(16, 8, -1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["parallel", "maskgit"])
def test_surprise_is_the_loss_of_the_dynamics_and_depends_on_z_and_actions(world, chosen, mode):
    model = world.world.model
    dynamics = dataclasses.replace(model.settings.dynamics, decode_mode=mode)
    changed = dataclasses.replace(world.world, model=Whale(dataclasses.replace(model.settings, dynamics=dynamics)))
    params = world.params
    if mode == "maskgit":
        params = {**params, "dynamics": {**params["dynamics"], "mask": np.ones(16, np.float32)}}
    loaded = dataclasses.replace(world, world=changed, params=params)
    own = one_hot(infer(loaded, chosen, 8)[:, :-1])
    others = measures.other_clips(chosen.tasks, chosen.policies)
    found = surprises(loaded, chosen, 8, {OWN: own, NONE: np.zeros_like(own)}, others)
    stage = DynamicsStage(changed, world.action_spec, StageSettings())
    _, frames, actions = next(chosen.batches(16))
    batch = example(16, 8, SIDE, SIDE, 4)
    batch = batch.replace(frames=frames, actions=np.pad(actions, ((0, 0), (0, 1), (0, 0))))
    loss = jax.jit(lambda b: stage.loss(params["dynamics"], params, b, jax.random.key(0), False)[0])(batch)
    assert found[OWN].mean() == pytest.approx(float(loss), rel=1e-4)
    assert (found[NONE] != found[OWN]).any() and (found["another clip's actions"] != found[OWN]).any()


@pytest.fixture(scope="module")
def written(world, store, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    model = dataclasses.replace(world, source=output / "c" / "reward" / "1")
    return evaluate(Job(model, store.held_out(), output, seen=seen(store)), {"behaviour": SETTINGS}), output


@pytest.mark.slow
def test_the_result_has_both_kinds_of_policies_and_warns_of_an_embedding_that_says_nothing(written):
    metrics, output = written
    found = json.loads((output / "metrics.json").read_text())["behaviour"]
    assert found["policies"] == "seen" and set(found["cross_entropy"]) == {"seen", "unseen"}
    assert set(found["cross_entropy"]["seen"]["mean"]) == {OWN, OTHER, NONE, "another clip's actions"}
    assert found["cross_entropy"]["unseen"]["clips"] == 16
    assert set(found["probe"]) == {"task"}, "the valid episodes are of one policy"
    assert 0 < found["entropy"] < found["largest_entropy"] == pytest.approx(4 * np.log(4))
    assert len(found["map"]["points"]) == len(found["map"]["tasks"]) == 8
    page, (told,) = (output / "report.html").read_text(), statements(metrics)
    assert 'id="embedding"' in page and page.count('<svg class="chart"') == 3
    silent = not found["cross_entropy"]["seen"]["worse"][OTHER][1] > 0
    assert silent == bool(found["warnings"]) == ("Warning:" in told)


def test_the_advice_is_a_command_that_trains_longer(world, monkeypatch):
    from whale_jax.evaluation.behaviour.suite import _advice, _warnings
    from whale_jax.jobs.configuration import default_config, override

    dull = {"accuracy": [0.2, 0.1, 0.3], "untrained": [0.2, 0.1, 0.3], "gain": [0.0, -0.1, 0.1]}
    dull |= {"chance": 0.17, "majority": 0.17}
    good = dull | {"accuracy": [0.8, 0.7, 0.9], "gain": [0.6, 0.5, 0.7]}
    assert _advice(world, "behaviour", {"probe": {}}) == _advice(world, "behaviour", {"probe": {"policy": dull}})
    later = _advice(world, "behaviour", {"probe": {"policy": good}})
    assert "stages.dynamics.steps=6000" in later, "z tells policies, so that the dynamics are what lacks steps"
    text = _advice(world, "behaviour", {"probe": {"policy": dull}})
    assert "at most 200 steps" in text
    given = [word.strip(".").removeprefix("--config.").split("=") for word in text.split() if "--config." in word]
    config = override(default_config(), given)
    assert config.stages.behaviour.steps == 4000 and config.stages.behaviour.eval_every == 400
    useless = {"seen": {"worse": {OTHER: [0.0002, -0.0001, 0.0004]}}}
    two = _warnings({"probe": {"policy": dull}, "cross_entropy": useless}, "seen")
    assert len(two) == 2 and "does not tell policies apart" in two[0] and "of no use to the dynamics" in two[1]
    useful = {"seen": {"worse": {OTHER: [0.02, 0.01, 0.03]}}}
    assert _warnings({"probe": {"policy": good}, "cross_entropy": useful}, "seen") == []
    assert _warnings({"probe": {}, "cross_entropy": {}}, "seen") == []


@pytest.mark.slow
def test_without_trained_dynamics_or_conditioning_only_the_embedding_is_read(world, store, tmp_path):
    only = {name: world.params[name] for name in ("tokenizer", "behaviour")}
    for params, why in (
        (only, "not trained yet"),
        (world.world.model.without_behaviour(world.params), "switched off"),
    ):
        job = Job(dataclasses.replace(world, params=params), store.held_out(), tmp_path, settings=SETTINGS, films=False)
        found = Behaviour().run(job)
        assert found["cross_entropy"] == {} and why in found["notes"][0] and "map" not in found
        assert found["policies"] == "unseen" and set(found["probe"]) == {"policy", "task"}


def test_what_cannot_be_measured_is_refused(world, store, tmp_path):
    bare = dataclasses.replace(world, params={"tokenizer": world.params["tokenizer"]})
    with pytest.raises(WhaleError, match="no trained behaviour yet.*--until=behaviour"):
        Behaviour().check(Job(bare, store, tmp_path))
    short = open_store(tiny.write_store(tmp_path / "short", steps=3, side=SIDE))
    with pytest.raises(WhaleError, match="has the 8 frames that behaviour is inferred from"):
        Behaviour().run(Job(world, short.held_out(), tmp_path, settings=SETTINGS))
