"""A run that was stopped, however rudely, ends with the very parameters of one that was not."""

import json
import random
import shutil
from pathlib import Path

import pytest
import tiny

LAST = 10


def assert_same_run(one: Path, other: Path, names=tiny.STAGES) -> None:
    for name in names:
        for item in ("params", "optimizer", "example"):
            tiny.assert_equal_trees(
                *(tiny.read_tree(w / "checkpoints" / name / str(LAST) / item) for w in (one, other))
            )
        assert tiny.history_of(one, name) == tiny.history_of(other, name)


@pytest.mark.parametrize(
    "name", [name if name == "dynamics" else pytest.param(name, marks=pytest.mark.slow) for name in tiny.STAGES]
)
def test_a_stage_resumed_from_its_checkpoint_ends_bit_for_bit_the_same(name, trained, store, tmp_path, whale):
    workdir, _ = trained
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    stages = list(tiny.STAGES)
    for later in stages[stages.index(name) :]:
        shutil.rmtree(again / "checkpoints" / later / str(LAST))
    for later in stages[stages.index(name) + 1 :]:
        shutil.rmtree(again / "checkpoints" / later)
    done = whale(*tiny.train_arguments(store, again, f"--until={name}"))
    assert done.status == 0, done.err
    assert f"{name}: resuming at step 8 of {LAST}" in done.err
    assert_same_run(workdir, again, [name])
    meta = [json.loads((w / "checkpoints" / name / str(LAST) / "meta/metadata").read_text()) for w in (workdir, again)]
    data = [json.loads((w / "checkpoints" / name / str(LAST) / "data/metadata").read_text()) for w in (workdir, again)]
    assert meta[0] == meta[1] and data[0] == data[1]


def test_a_finished_run_is_left_as_it_is(trained, store, tmp_path, whale):
    workdir = Path(shutil.copytree(trained[0], tmp_path / "run"))
    before = tiny.files_in(workdir)
    done = whale(*tiny.train_arguments(store, workdir, "--until=reward"))
    after = tiny.files_in(workdir)
    assert done.status == 0 and "step" not in done.err
    of_the_call = {"phases.json", "run.json"}
    assert {k: v for k, v in before.items() if k not in of_the_call} == {
        k: v for k, v in after.items() if k not in of_the_call
    }


def test_another_data_set_is_refused_on_resume(trained, tmp_path, whale):
    workdir, _ = trained
    again = tmp_path / "again"
    shutil.copytree(workdir / "checkpoints" / "tokenizer", again / "checkpoints" / "tokenizer")
    shutil.rmtree(again / "checkpoints" / "tokenizer" / str(LAST))
    other = tiny.write_store(tmp_path / "other", each=1)
    error = whale(*tiny.train_arguments(other, again, "--until=tokenizer")).error()
    assert "cannot resume" in error


@pytest.mark.slow
def test_killed_at_random_moments_in_every_stage_it_ends_bit_for_bit_the_same(trained, store, tmp_path):
    workdir, _ = trained
    rng = random.Random(20241105)
    victim, kills = tmp_path / "killed", []
    for name in tiny.STAGES:
        run = tiny.Training(store, victim)
        line, delay = rng.randrange(1, 9), rng.choice([0.0, 0.02, 0.1])
        assert run.when(lambda run=run, name=name, line=line: run.lines(name) >= line, delay)
        kills.append((name, run.lines(name)))
        if name == "behaviour":
            run = tiny.Training(store, victim)
            assert run.when(lambda run=run: run.saving("behaviour", range(2, LAST)))
            leftover = list((victim / "checkpoints" / "behaviour").glob("*.orbax-checkpoint-tmp*"))
            kills.append(("while saving", len(leftover)))
    done = tiny.whale(*tiny.train_arguments(store, victim))
    assert done.status == 0, done.err
    assert_same_run(workdir, victim)
    assert (victim / "report.html").is_file()
    assert {name for name, _ in kills} >= set(tiny.STAGES), kills
