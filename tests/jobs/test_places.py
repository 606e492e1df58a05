"""A run keeps paths that mean the same from every directory, and finds what older runs kept relative."""

import json
import shutil

import gymnasium
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import flat
from whale_jax.base.workdir import Workdir
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import to_plain
from whale_jax.jobs.places import anchored
from whale_jax.jobs.pretrain import pretrain
from whale_jax.jobs.reuse import reuse
from whale_jax.models.saved import find
from whale_jax.training.checkpoint import newest_meta


def test_paths_of_a_config_become_absolute_and_all_else_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    config = tiny.get_config()
    (tmp_path / "store").mkdir()
    config.data.root, config.data.index = "store", "gs://bucket/index"
    (tmp_path / "mine.yaml").touch()
    with config.unlocked():
        config.data.robots = {"my_arm": "mine.yaml", "other": "arx5"}
    config.stages.dynamics.start_from, config.evaluation.judge.criteria = "old/run", "~/mine.yaml"
    kept = anchored(config, Workdir("run"))
    assert kept.data.root == str(tmp_path / "store") and kept.data.index == "gs://bucket/index"
    assert kept.stages.dynamics.start_from == str(tmp_path / "old/run") and kept.stages.reward.start_from == ""
    assert kept.data.robots.to_dict() == {"my_arm": str(tmp_path / "mine.yaml"), "other": "arx5"}
    assert kept.evaluation.judge.criteria == "/home/me/mine.yaml"
    assert config.data.root == "store", "the caller's config stays"
    before, after = (flat(to_plain(each)) for each in (config, kept))
    changed = {key for key, value in before.items() if after[key] != value}
    assert changed == {"data.root", "data.robots.my_arm", "stages.dynamics.start_from", "evaluation.judge.criteria"}


def test_what_leads_nowhere_is_told_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny.get_config()
    config.data.root = "owner/name"
    with pytest.raises(WhaleError, match="no data set at owner/name.*`hf download"):
        pretrain(config, tmp_path / "run", until="tokenizer")
    config.data.record.tasks = ("reach",)
    assert anchored(config, Workdir("run")).data.root == str(tmp_path / "owner/name"), "it will be recorded there"


def test_data_inside_the_run_move_with_it(tmp_path):
    config = tiny.get_config()
    config.data.root = str(tmp_path / "run" / "data")
    assert anchored(config, Workdir(tmp_path / "run")).data.root == ""
    assert anchored(config, Workdir(tmp_path / "other")).data.root == str(tmp_path / "run" / "data")


def test_a_run_that_was_given_a_relative_path_works_and_resumes_from_anywhere(store, tmp_path, monkeypatch):
    (tmp_path / "store").symlink_to(store)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = tiny.get_config()
    config.data.root = "store"
    pretrain(config, "run", until="tokenizer")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(load("../run").open_episodes()) == 20
    for again in (str(tmp_path / "store"), "../store"):
        config.data.root = again
        pretrain(config, tmp_path / "run", until="tokenizer")
        assert reuse(tmp_path / "run", "taken", config) in (["tokenizer"], [])
    assert newest_meta(tmp_path / "run/checkpoints/tokenizer").config["data"]["root"] == str(tmp_path / "store")


@pytest.fixture
def old(trained, store, tmp_path):
    """proj/runs/old, a run whose description says that it was trained on the relative path "store"."""
    where, step = find(trained[0])
    run = tmp_path / "proj" / "runs" / "old"
    shutil.copytree(where / str(step), run / "checkpoints" / where.name / str(step))
    path = next(run.glob("checkpoints/*/*/meta/metadata"))
    meta = json.loads(path.read_text())
    meta["config"]["data"]["root"] = "store"
    path.write_text(json.dumps(meta))
    (tmp_path / "elsewhere").mkdir()
    return run


def test_the_data_of_an_older_run_are_found_above_it(old, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "elsewhere")
    (old.parents[1] / "store").symlink_to(store)
    assert load(old).episodes == old.parents[1] / "store" and len(load(old).open_episodes()) == 20


def test_another_store_of_that_name_is_not_taken_silently(old, store, tmp_path, monkeypatch, whale):
    monkeypatch.chdir(tmp_path / "elsewhere")
    (old.parents[1] / "store").symlink_to(store)
    tiny.write_store(tmp_path / "elsewhere" / "store", each=1)
    with pytest.raises(WhaleError, match="there are .*proj/store and .*elsewhere/store. Name .* --data=DIR"):
        load(old).open_episodes()
    assert len(load(old).open_episodes("store")) == 10
    with pytest.raises(gymnasium.error.Error, match="in Python data=DIR"):
        gymnasium.make("whale_jax.control:whale/Dream-v0", checkpoint=old)


def test_the_message_of_missing_data_names_the_option(old, whale):
    error = whale("evaluate", f"--checkpoint={old}").error()
    assert "no data set at store" in error and "--data=DIR" in error
