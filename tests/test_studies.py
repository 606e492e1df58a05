"""The studies in benchmarks: what they keep, and that the documents print what their tables say."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.evaluation.statistics import compare
from whale_jax.jobs.configuration import load_config

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks" / "studies"))

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
