"""DreamerV3's world model goes where Whale goes: training, resume, imagination, ranking, Gymnasium, fine-tuning."""

import dataclasses
import json

import gymnasium
import jax
import numpy as np
import pytest
import tiny

import whale_jax
from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.evaluate import Request, evaluate_checkpoint
from whale_jax.imagination.environments.dream import DreamSettings
from whale_jax.jobs import finetune
from whale_jax.jobs.configuration import default_config
from whale_jax.jobs.pretrain import pretrain

pytestmark = pytest.mark.slow


def get_config(store):
    config = default_config("rssm")
    config.name, config.data.root = "tiny-dreamer", str(store)
    config.model.num_frames, config.model.image_size = 4, tiny.SIDE
    sizes = {"deter": 16, "hidden": 16, "stoch": 4, "classes": 4, "depth": 4, "head_units": 16, "bins": 21}
    config.model.rssm.update(sizes)
    config.model.reward.channels, config.model.reward.hidden, config.model.reward.bins = (8, 8), 16, 21
    for stage in config.stages.values():
        stage.update(
            {"steps": 10, "batch_size": 8, "log_every": 1, "eval_every": 4, "save_every": 2, "eval_batches": 1}
        )
    config.log.tensorboard = False
    config.evaluation.update({"horizon": 4, "episodes": 2, "batch_size": 2, "start": -1})
    return config


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "dreamer"
    metrics = pretrain(get_config(store), workdir)
    assert metrics["run"]["parameters"].keys() == {"rssm", "reward"}
    return workdir


def test_it_resumes_bit_for_bit(run, store, tmp_path):
    """From the checkpoint before the last, as after a kill."""
    source, target = run / "checkpoints" / "rssm" / "8", tmp_path / "run" / "checkpoints" / "rssm" / "8"
    target.parent.mkdir(parents=True)
    target.symlink_to(source)
    pretrain(get_config(store), tmp_path / "run", until="rssm")
    one, other = (tiny.read_tree(root / "checkpoints/rssm/10/params") for root in (run, tmp_path / "run"))
    tiny.assert_equal_trees(one, other)


def test_it_imagines_with_entropy_and_its_own_rewards(run, store):
    model, episode = whale_jax.load(run), open_store(store).read(0)
    frames, actions = episode.frames[None, :2], episode.actions[None, :7]
    future = model.imagine(frames, actions, uncertainty="auto")
    assert future.frames.shape == (1, 6, tiny.SIDE, tiny.SIDE, 3)
    assert (future.uncertainty > 0).all() and future.rewards.shape == future.own_rewards.shape == (1, 6)
    with pytest.raises(WhaleError, match="has no branch, and the uncertainty retracing takes that; use entropy"):
        model.imagine(frames, actions, uncertainty="retracing")
    with pytest.raises(WhaleError, match="trained without behaviour conditioning"):
        model.without_behaviour()


def test_it_is_ranked_by_the_reward_head_and_by_its_own(run, store, tmp_path):
    settings = {"value": {"horizon": 8}}
    request = Request(run, store, tmp_path, ("value",), settings)
    metrics, output = evaluate_checkpoint(request)
    value = metrics["value"]
    for entry in value["tasks"].values():
        assert {"by_policies", "own_by_policies"} <= entry.keys() and "behaviour" not in entry
    assert "own_by_policies" in value["mean"] and any("Behaviours are not described" in note for note in value["notes"])
    assert "by the model&#x27;s own rewards" in (output / "report.html").read_text()


def test_one_reward_head_scores_several_models(run, store):
    """The head of another checkpoint takes the place of the model's, and the frames stay."""
    model = whale_jax.load(run)
    head = jax.tree.map(lambda leaf: leaf + 0.3, model.params["reward"])
    judge = dataclasses.replace(model, params={**model.params, "reward": head})
    episode = open_store(store).read(0)
    arguments = episode.frames[None, :2], episode.actions[None, :7]
    ours, theirs = model.imagine(*arguments), model.with_head("reward", judge).imagine(*arguments)
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    assert (ours.rewards != theirs.rewards).any() and (ours.own_rewards == theirs.own_rewards).all()
    bare = whale_jax.load(run / "checkpoints" / "rssm")
    with pytest.raises(WhaleError, match="holds no trained head reward"):
        model.with_head("reward", bare)


def test_it_is_a_gymnasium_environment(run):
    envs = gymnasium.make_vec("whale_jax.control:whale/Dream-v0", num_envs=3, checkpoint=run, context=2, horizon=3)
    envs.reset(seed=0)
    for _ in range(5):
        _, rewards, _, _, info = envs.step(envs.action_space.sample())
    assert rewards.shape == (3,) and np.isfinite(info["uncertainty"]).all()
    envs.close()
    assert DreamSettings().uncertainty == "auto"
    with pytest.raises(gymnasium.error.Error, match="meant for retracing. .* holds a rssm, which has no branch"):
        gymnasium.make_vec("whale_jax.control:whale/Dream-v0", num_envs=3, checkpoint=run, context=2, penalty=1.0)


def test_it_is_fine_tuned(run, store, tmp_path, capsys):
    start = finetune.open_start(run)
    job = finetune.Job(start, open_store(store), change=lambda config: config.stages.rssm.update({"steps": 2}))
    finetune.finetune(job, tmp_path / "tuned", until="rssm")
    assert "rssm: " in capsys.readouterr().err
    meta = json.loads((tmp_path / "tuned/checkpoints/rssm/2/meta/metadata").read_text())
    assert meta["config"]["stages"]["rssm"]["start_from"] == str(start.path)
    with pytest.raises(WhaleError, match="not conditioned on behaviour"):
        finetune.make_config(start, job.store, behaviour=False)
