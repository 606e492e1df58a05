"""Where a run keeps what."""

import os

import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.base.workdir import Workdir


def test_a_checkpoint_leads_back_to_its_run(tmp_path):
    step = Workdir(tmp_path / "run").checkpoints("dynamics") / "40"
    assert Workdir.of(step) == Workdir(tmp_path / "run") == Workdir(Workdir(str(tmp_path / "run")))
    assert Workdir.of(step).history("reward") == tmp_path / "run/history/reward.jsonl"
    assert os.fspath(Workdir(tmp_path)) == f"{Workdir(tmp_path)}" == str(tmp_path)


def test_checkpoints_are_absolute_and_a_half_written_one_does_not_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Workdir("run")
    for name in ("10", "20", "30.orbax-checkpoint-tmp-7"):
        (run.checkpoints("tokenizer") / name).mkdir(parents=True)
    (run.checkpoints("reward") / "5").mkdir(parents=True)
    assert run.checkpoints("tokenizer") == tmp_path / "run/checkpoints/tokenizer"
    assert sorted(path.name for path in run.checkpoint_steps("tokenizer")) == ["10", "20"]
    assert len(run.checkpoint_steps()) == 3


def test_the_episodes_of_a_run_are_its_own_those_named_or_of_a_mixture_the_held_out_ones(tmp_path):
    run = Workdir(tmp_path)
    assert run.episodes({"root": "", "mixture": {}}) == run.episodes({}) == tmp_path / "data"
    assert str(run.episodes({"root": "/robot", "mixture": {}})) == "/robot"
    assert run.episodes({"root": "/oxe", "mixture": {"bridge": 1.0}}) == tmp_path / "held-out"


def test_ranked_episodes_that_are_long_enough_serve(tmp_path):
    run = Workdir(tmp_path)
    assert run.ranked(64) == (64, tmp_path / "ranked-64")
    for name in ("ranked-32", "ranked-80", "ranked-100", "ranked-old"):
        (tmp_path / name).mkdir()
    assert run.ranked(64) == (80, tmp_path / "ranked-80")


@pytest.mark.parametrize("where", ["file", "file/deeper", "/proc/run"])
def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path, where):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WhaleError, match="cannot be made or written.*choose another"):
        Workdir(tmp_path / where).locked().__enter__()
    assert (tmp_path / "file").read_text() == "mine"
