"""Evaluation during training: its figures reach history, TensorBoard and report, and training does not notice it."""

import shutil

import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.report.sections import training_section
from whale_jax.jobs.pretrain import pretrain
from whale_jax.jobs.reuse import reuse

FIGURES = {"evaluation/moving_psnr", "evaluation/gain"}


def config_for(store):
    config = tiny.get_config()
    config.data.root = str(store)
    config.log.tensorboard = True
    config.evaluation.during_training = 3
    config.evaluation.cheap.episodes, config.evaluation.cheap.horizon = 1, 4
    return config


@pytest.fixture(scope="module")
def train(trained, store, tmp_path_factory):
    """Trains the dynamics of `trained` once more in this process, as its programs round otherwise than a command's."""

    def run(every: int):
        workdir, config = tmp_path_factory.mktemp("runs") / "again", config_for(store)
        config.evaluation.during_training = every
        reuse(trained[0], workdir, config)
        for name in ("dynamics", "reward", "ensemble"):
            shutil.rmtree(workdir / "checkpoints" / name)
            (workdir / "history" / f"{name}.jsonl").unlink()
        pretrain(config, workdir, until="dynamics")
        return workdir

    return run


@pytest.fixture(scope="module")
def workdir(train):
    """A run that is evaluated every third step."""
    return train(3)


def measured(workdir, name="dynamics"):
    return [entry for entry in tiny.history_of(workdir, name) if FIGURES & entry.keys()]


def parameters(workdir):
    return tiny.read_tree(workdir / "checkpoints/dynamics/10/params")


@pytest.mark.slow
def test_figures_are_followed_in_the_stages_that_can_imagine(workdir):
    assert [entry["step"] for entry in measured(workdir)] == [3, 6, 9]
    assert all(set(entry) == {"step", *FIGURES} for entry in measured(workdir))
    assert not measured(workdir, "tokenizer")
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard/dynamics").iterdir())
    assert all(name.encode() in events for name in FIGURES)
    assert not list(workdir.rglob("films")) and not (workdir / "metrics.json").exists()


@pytest.mark.slow
def test_parameters_and_losses_are_those_of_a_training_without(workdir, train):
    without = train(0)
    tiny.assert_equal_trees(parameters(workdir), parameters(without))
    rest = [entry for entry in tiny.history_of(workdir, "dynamics") if not FIGURES & entry.keys()]
    assert rest == tiny.history_of(without, "dynamics")


@pytest.mark.slow
def test_a_resumed_stage_has_the_same_figures_and_ends_the_same(workdir, store, tmp_path):
    shutil.copytree(workdir, tmp_path / "run")
    steps = tmp_path / "run/checkpoints/dynamics"
    kept = sorted(int(path.name) for path in steps.iterdir())
    assert len(kept) > 1
    for step in kept[1:]:
        shutil.rmtree(steps / str(step))
    pretrain(config_for(store), tmp_path / "run", until="dynamics")
    tiny.assert_equal_trees(parameters(tmp_path / "run"), parameters(workdir))
    assert measured(tmp_path / "run") == measured(workdir)


@pytest.mark.slow
def test_the_report_draws_them_with_the_training(workdir):
    history = tiny.history_of(workdir, "dynamics")
    html = training_section({"training": {"dynamics": {"history": history, "steps": 10, "seconds": 1.0}}})
    assert "dynamics: moving psnr by step" in html and "dynamics: gain by step" in html


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("cheap.suites", ("vidio",), "no suite named 'vidio'; did you mean video"),
        ("cheap.suites", ("judge",), "needs a vision-language model"),
        ("cheap.horizon", 40, "the report needs 42"),
        ("during_training", -1, "evaluation.during_training is at least 0"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_trained(key, value, says, store, tmp_path):
    config = config_for(store)
    config.update_from_flattened_dict({f"evaluation.{key}": value})
    with pytest.raises(WhaleError, match=says):
        pretrain(config, tmp_path / "run", until="tokenizer")
    assert not (tmp_path / "run/checkpoints").exists()
