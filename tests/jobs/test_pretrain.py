"""The whole job on an invented store: the files that it leaves, and that it does nothing twice."""

import json
import shutil
import socket

import jax
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.workdir import Workdir
from whale_jax.data.store.store import open_store
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import completed, to_plain
from whale_jax.jobs.pretrain import Phases, pretrain
from whale_jax.jobs.reuse import keep_data, reuse
from whale_jax.nn.two_hot import learnt

MEASURES = {"psnr", "ssim", "moving_psnr"}
CONTROLS = {"repeat_last_frame", "reconstruction", "wrong_actions"}


@pytest.fixture(scope="module")
def metrics(trained):
    return json.loads((trained[0] / "metrics.json").read_text())


def test_metrics_hold_every_measure_and_control_by_horizon(metrics):
    assert metrics["format"] == "whale-metrics/2"
    assert set(metrics["video"]) == set(tiny.TASKS)
    for policies in metrics["video"].values():
        assert set(policies) == set(tiny.POLICIES["test"])
        for cell in policies.values():
            assert cell["episodes"] == 2 and 0 < cell["moving_share"] < 1
            for series in (cell, *(cell[name] for name in CONTROLS)):
                assert set(series) >= MEASURES and {len(series[m]) for m in MEASURES} == {4}
            assert len(cell["reward_error"]) == 4


def test_metrics_say_how_they_were_made(metrics):
    protocol, run = metrics["protocol"], metrics["run"]
    assert protocol["context"] == 2 and protocol["horizon"] == 4 and protocol["split"] == ["test"]
    assert set(protocol["definitions"]) >= CONTROLS | MEASURES
    checkpoint = protocol["checkpoint"]
    assert (checkpoint["stage"], checkpoint["name"]) == ("ensemble", "ensemble/10") and len(checkpoint["sha256"]) == 64
    assert protocol["behaviour_conditioning"] == "on"
    assert set(run["phases"]) == {"recording", *tiny.STAGES, "evaluation"}
    assert run["versions"]["jax"] and run["parameters"]["dynamics"] > 0
    assert run["dataset"]["episodes"] == 8 and run["config"]["name"] == "tiny"


def test_whether_behaviour_is_learnt_is_said_before_dynamics_build_on_it_and_in_the_report(trained, metrics):
    said = [line for line in trained[1].err.splitlines() if "What is inferred of the policy" in line]
    assert len(said) == 1 and said[0].startswith("behaviour: ") and "not trained yet" in said[0]
    assert trained[1].err.index(said[0]) < trained[1].err.index("dynamics")
    found = metrics["behaviour"]
    assert found["policies"] == "seen" and set(found["cross_entropy"]) == {"seen", "unseen"}
    assert "What is inferred of the policy" in trained[1].out
    assert 'id="embedding"' in (trained[0] / "report.html").read_text()


def test_histories_have_every_step_and_every_evaluation(trained, metrics):
    for name in tiny.STAGES:
        entries = tiny.history_of(trained[0], name)
        assert [e["step"] for e in entries if "loss" in e] == list(range(1, 11))
        assert [e["step"] for e in entries if "val/loss" in e] == [4, 8, 10]
        assert metrics["training"][name]["steps"] == 10
        assert len(metrics["training"][name]["history"]) == len(entries)


def test_the_report_stands_alone(trained):
    page = (trained[0] / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and 'src="film' not in page
    assert page.count("data:") >= 4


def test_a_checkpoint_holds_the_config_it_was_made_with(trained, store):
    meta = json.loads((trained[0] / "checkpoints/ensemble/10/meta/metadata").read_text())
    config = tiny.get_config()
    config.data.root = str(store)
    assert meta["config"] == to_plain(completed(config))


def test_a_run_says_what_it_is_to_those_who_watch_it(trained, metrics):
    path = trained[0] / "run.json"
    run = json.loads(path.read_text())
    assert run["config"] == metrics["run"]["config"] and run["stages"] == list(tiny.STAGES)
    assert run["host"] == socket.gethostname() and run["versions"] == metrics["run"]["versions"]
    assert abs(path.stat().st_mtime - run["started"]) < 60 and run["pid"] > 0


def test_training_learns_even_here(trained):
    """Ten steps from the same start lower the loss on the training batches of every stage."""
    for name in ("tokenizer", "dynamics"):
        losses = [e["loss"] for e in tiny.history_of(trained[0], name) if "loss" in e]
        assert losses[-1] < losses[1], name


def test_the_reward_head_says_which_rewards_it_has_seen(trained, store):
    """All bins lie within a bin of the recorded rewards, and so does what the head says of any frames."""
    model, episodes = load(trained[0]), open_store(store)
    head = model.world.heads_by_name["reward"]
    rewards = np.concatenate([episodes.read(i).rewards for i in range(len(episodes))])
    params, bins = model.params["reward"], np.asarray(head.bins)
    seen = bins[np.asarray(learnt(**params["head"]))]
    gap = bins[bins > rewards.max()].min()
    assert len(seen) >= 2 and -gap < seen.min() <= 0 and rewards.max() < seen.max() <= gap
    noise = np.random.default_rng(0).integers(0, 256, (2, 50, tiny.SIDE, tiny.SIDE, 3)).astype(np.uint8)
    given = head.read(params, noise[0], np.zeros((50, 4), np.float32), noise[1])
    assert (np.abs(given) <= gap).all()


def test_an_unknown_stage_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(WhaleError, match="did you mean reward"):
        pretrain(tiny.get_config(), tmp_path / "run", until="rewards")
    assert not (tmp_path / "run").exists()


def test_phases_add_up_over_calls(tmp_path):
    for seconds in (1.5, 2.0):
        Phases(Workdir(tmp_path)).add("tokenizer", seconds)
    with Phases(Workdir(tmp_path)).timed("reward"):
        pass
    seconds = json.loads((tmp_path / "phases.json").read_text())
    assert seconds["tokenizer"] == 3.5 and 0 <= seconds["reward"] < 1
    assert [p.name for p in tmp_path.iterdir()] == ["phases.json"]


def test_an_ablation_takes_over_the_stages_that_do_not_differ(trained, store, tmp_path):
    config = tiny.get_config()
    config.data.root, config.model.behaviour_conditioning = str(store), False
    assert reuse(trained[0], tmp_path, config) == ["tokenizer", "behaviour"]
    assert reuse(trained[0], tmp_path, config) == []
    pretrain(config, tmp_path, until="dynamics")
    bare, whole = load(tmp_path), load(trained[0])
    assert bare.conditioning == "trained without" and whole.conditioning == "on"
    for name in ("tokenizer", "behaviour"):
        jax.tree.map(np.testing.assert_array_equal, bare.params[name], whole.params[name])
    assert "behaviour_out" not in bare.params["dynamics"]
    assert [e["step"] for e in tiny.history_of(tmp_path, "tokenizer")][-1] == 10


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, tiny.STAGES),
        ({"seed": 1}, ()),
        ({"stages.dynamics.max_lr": 1.0}, ("tokenizer", "behaviour")),
        ({"model.dynamics.own_frames": 0.5}, ("tokenizer", "behaviour")),
        ({"stages.ensemble.members": 0}, tiny.STAGES[:4]),
        ({"data.record.near_misses.train": 4}, ()),
    ],
)
def test_only_what_is_equal_is_taken_over(change, taken, trained, store, tmp_path):
    config = tiny.get_config()
    config.data.root = str(store)
    config.update_from_flattened_dict(change)
    assert reuse(trained[0], tmp_path, config) == list(taken)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_decodes_as_its_config_says_without_being_trained_again(trained, store, tmp_path):
    config = tiny.get_config()
    config.data.root, config.model.dynamics.point_estimate = str(store), "mean"
    before = tiny.files_in(trained[0] / "checkpoints")
    pretrain(config, tmp_path, until=tiny.STAGES[-1], reused=trained[0])
    taken, source = load(tmp_path), load(trained[0])
    assert taken.decoding == {"dynamics.point_estimate": "mean"} and source.decoding == {}
    assert taken.meta.config["model"]["dynamics"]["point_estimate"] == "mean"
    assert taken.fingerprint == source.fingerprint, "nothing was trained"
    assert taken.imagining != source.imagining, "errors were calibrated for other frames"
    written = tiny.files_in(tmp_path / "checkpoints")
    pretrain(config, tmp_path, until=tiny.STAGES[-1], reused=trained[0])
    assert tiny.files_in(tmp_path / "checkpoints") == written, "a second call changes nothing"
    config.model.dynamics.point_estimate = "mode"
    pretrain(config, tmp_path, until=tiny.STAGES[-1])
    assert load(tmp_path).imagining == source.imagining
    assert tiny.files_in(trained[0] / "checkpoints") == before


def test_stages_from_before_near_misses_are_taken_over(trained, store, tmp_path):
    shutil.copytree(trained[0] / "checkpoints", tmp_path / "old/checkpoints")
    for file in tmp_path.glob("old/checkpoints/*/*/meta/metadata"):
        meta = json.loads(file.read_text())
        del meta["config"]["data"]["record"]["near_misses"]
        file.write_text(json.dumps(meta))
    config = tiny.get_config()
    config.data.root = str(store)
    assert reuse(tmp_path / "old", tmp_path / "new", config) == list(tiny.STAGES)


def test_stages_of_other_data_or_of_another_run_are_not_mixed(trained, store, tmp_path):
    config = tiny.get_config()
    config.data.root = str(tmp_path / "other data")
    assert reuse(trained[0], tmp_path, config) == []
    config.data.root = str(store)
    other = config.copy_and_resolve_references()
    other.stages.tokenizer.max_lr = 1e-4
    pretrain(other, tmp_path / "own", until="tokenizer")
    assert reuse(trained[0], tmp_path / "own", config) == []
    assert [p.name for p in (tmp_path / "own/checkpoints").iterdir()] == ["tokenizer"]


def test_a_run_that_took_over_episodes_resumes_with_them(store, tmp_path):
    config = tiny.get_config()
    config.data.record.tasks, config.data.root = tiny.TASKS, str(store)
    (tmp_path / "run.json").write_text(json.dumps({"config": to_plain(config)}))
    for seed, root in ((0, str(store)), (1, "")):  # other settings of the recording mean other episodes
        again = config.copy_and_resolve_references()
        again.data.root, again.seed = "", seed
        keep_data(Workdir(tmp_path), again)
        assert again.data.root == root
    config.data.root = str(tmp_path / "named")
    keep_data(Workdir(tmp_path), config)
    assert config.data.root == str(tmp_path / "named")


def test_only_a_work_directory_can_be_taken_over(tmp_path):
    with pytest.raises(WhaleError, match="holds no checkpoints to take over"):
        reuse(tmp_path, tmp_path / "new", tiny.get_config())
