"""The studies in benchmarks: what they keep, and that the documents print what their tables say."""

import dataclasses
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.statistics import compare
from whale_jax.jobs.configuration import load_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "studies"))

import ablation  # noqa: E402
import kept  # noqa: E402
import uncertainty  # noqa: E402


def figures(interval: list[float]) -> list[str]:
    return [f"{value:.2f}" for value in interval]


def test_what_is_kept_is_read_again_in_the_order_of_the_seeds(tmp_path):
    for seed in (10, 2):
        kept.keep(tmp_path, "a-study", {"seed": seed, "model": "abc"}, {"x/y z": np.full(3, seed)})
    kept.keep(tmp_path, "another", {"seed": 0}, {"x": np.zeros(1)})
    (first, arrays), (second, _) = kept.kept(tmp_path, "a-study")
    assert (first, second["seed"]) == ({"seed": 2, "model": "abc"}, 10)
    assert list(arrays) == ["x/y z"] and arrays["x/y z"].tolist() == [2, 2, 2]
    with pytest.raises(WhaleError, match=r"no other-SEED\.npz; .*studies/other\.py says how"):
        kept.kept(tmp_path, "other")


def test_the_readme_has_the_figures_of_the_uncertainty_study():
    seeds = [uncertainty.steps_of(arrays)["real"] for _, arrays in kept.kept(ROOT / "docs" / "study", "uncertainty")]
    found = compare(seeds)
    rows = {name: figures(each["pooled"]) for name, each in found["mean"].items()}
    less = found["differences"]["retracing"]["entropy"]
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"\| correlation of uncertainty with error: retracing, entropy \| (.*?) \|", readme)[1]
    assert re.findall(r"\d\.\d\d", shown) == rows["retracing"] + rows["entropy"]
    said = re.search(r"better than the entropy by (.*?), within single\nsteps by (.*?), and", readme)
    assert re.findall(r"-?\d\.\d\d", said[1] + said[2]) == figures(less["pooled"]) + figures(less["within"])


def test_a_seed_records_what_its_config_says():
    script = (ROOT / "benchmarks" / "studies" / "seed.sh").read_text()
    flags = dict(re.findall(r"--([a-z-]+)=([\w,-]+)", script.split("train --config")[0]))
    record = load_config("study_small").data.record
    assert flags.pop("tasks").split(",") == list(record.tasks)
    counts = {"train": record.episodes["train"], "valid": record.episodes["valid"], "test": record.episodes["test"]}
    counts |= {"near-misses": record.near_misses["train"], "valid-near-misses": record.near_misses["valid"]}
    wanted = counts | {"steps": record.steps, "action-repeat": record.action_repeat}
    assert {name: int(value) for name, value in flags.items()} == wanted


@pytest.mark.slow
def test_the_ablation_trains_and_measures_every_variant(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "GIVEN", 2)
    monkeypatch.setattr(ablation, "AHEAD", 2)  # the tiny window has 4 frames
    run = shutil.copytree(trained[0], tmp_path / "run")
    ablation.train(run, 2)
    with np.load(ablation.measure(run, tmp_path)) as file:
        found = {name: file[name] for name in file.files if name != "made"}
    for part, known in (("seen", True), ("unseen", False)):
        count = len(found[f"{part}/episode"])
        assert count > len(set(found[f"{part}/episode"])), "several clips an episode"
        conditions = [ablation.OWN, ablation.NONE, ablation.WITHOUT, *([ablation.NUMBER] * known)]
        entropies = {name: found[f"{part}/cross-entropy/{name}"] for name in (*conditions, ablation.OTHER)}
        assert all(each.shape == (count,) and np.isfinite(each).all() for each in entropies.values())
        # So little trained, z may be the same for all clips.
        assert len({entropies[name].tobytes() for name in conditions}) == len(conditions)
        assert known or f"{part}/cross-entropy/{ablation.NUMBER}" not in found
        for name in (ablation.OWN, ablation.OTHER, ablation.WITHOUT):
            assert found[f"{part}/moving PSNR/{name}"].shape == (count,)
    lines = ablation.table(tmp_path)
    assert sum(line.startswith("| own z |") for line in lines) == 4 and not any("nan" in line for line in lines)


def test_the_z_of_another_clip_is_that_of_half_a_batch_further():
    model = tiny.random_world()
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 2, 32, 32, 3), np.uint8)
    actions = rng.uniform(-1, 1, (4, 4, 4)).astype(np.float32)
    swapped = model.with_model(ablation.Swapped(model.world.model.settings))
    own, other = model.imagine(frames, actions).frames, swapped.imagine(frames, actions).frames
    assert (own != other).any()
    twice = [np.concatenate([x[:2], x[:2]]) for x in (frames, actions)]
    np.testing.assert_array_equal(swapped.imagine(*twice).frames[:2], model.imagine(*twice).frames[:2])
    without = dataclasses.replace(model.without_behaviour(), world=swapped.world)
    np.testing.assert_array_equal(
        without.imagine(frames, actions).frames, model.without_behaviour().imagine(frames, actions).frames
    )
