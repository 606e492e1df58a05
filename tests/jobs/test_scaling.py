"""The scaling study: what it counts, fits and refuses, and that a killed study ends with the same table."""

import json
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
import tiny
import tiny_scaling

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.batches import LocalSource
from whale_jax.data.store.store import nested_share, open_store
from whale_jax.evaluation.clips import Clips
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import load_config, make_world, override
from whale_jax.jobs.pretrain import train_alone
from whale_jax.jobs.scaling import FROZEN, Cell, ScalingSettings, fit, losses, pixel_mse, scaling_study
from whale_jax.models.saved import find_component
from whale_jax.training.settings import StageSettings

SIZES = {"w8": (2, 8, 2), "w16": (2, 16, 2)}
FINETUNE = {"root": "r", "steps": 1, "max_lr": 0.0, "min_lr": 0.0, "warmup": 0}
LEAST = {"train": 6, "valid": 2, "test": 2}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tiny_scaling.write_stores(tmp_path_factory.mktemp("stores"), LEAST, LEAST)


def arguments(stores, workdir, *more):
    pretraining, finetuning = stores
    roots = (f"--config.data.root={pretraining}", f"--config.scaling.finetune.root={finetuning}")
    return ("scale", f"--config={tiny_scaling.__file__}:least", f"--workdir={workdir}", *roots, *more)


def without_clock(table):
    cells = [{k: v for k, v in cell.items() if k != "seconds"} for cell in table["cells"]]
    return table | {"cells": cells}


@pytest.mark.parametrize("total", [1, 7, 1000])
def test_a_smaller_share_lies_within_a_larger_one_and_is_drawn_by_the_seed(total):
    shares = [set(nested_share(total, f, 3).tolist()) for f in (0.001, 0.125, 0.25, 0.5, 1.0)]
    assert all(a <= b for a, b in zip(shares, shares[1:], strict=False))
    assert shares[0] and shares[-1] == set(range(total)) and len(shares[3]) == max(1, round(total / 2))
    np.testing.assert_array_equal(nested_share(total, 0.25, 3), nested_share(total, 0.25, 3))
    assert total < 1000 or set(nested_share(total, 0.25, 4).tolist()) != shares[2]


def test_every_host_sees_the_same_share_and_the_iterator_knows_which(stores):
    source = LocalSource(open_store(stores[0]), 1 << 20)

    def streams(fraction, hosts):
        return [source.train("dynamics", 24 // hosts, 4, 0, (host, hosts), fraction) for host in range(hosts)]

    def drawn(fraction, hosts):
        batches = [next(stream) for stream in streams(fraction, hosts) for _ in range(8)]
        rows = zip(*(np.concatenate([getattr(b, k) for b in batches]) for k in ("episode", "start")), strict=True)
        return {(int(episode), int(start)) for episode, start in rows}

    assert drawn(0.5, 1) == drawn(0.5, 2) and len({episode for episode, _ in drawn(0.5, 1)}) == 3
    assert len({episode for episode, _ in drawn(1.0, 1)}) == 6
    (half,), (whole,) = streams(0.5, 1), streams(1.0, 1)
    with pytest.raises(WhaleError, match="cannot resume: its saved episodes"):
        whole.set_state(half.get_state())


def test_flops_are_those_counted_by_hand():
    """Whale-X base: 204 M parameters, 64 segments of 16 frames of 256 tokens, 12 blocks of width 1024."""
    config = load_config(str(tiny.ROOT / "configs" / "scaling.py"))
    settings = ScalingSettings.from_dict(config.scaling.to_dict())
    assert len(settings.cells) == 16 and settings.cells[0] == Cell("small", (18, 512, 8), 0.125)
    cell = next(cell for cell in settings.cells if cell.name == "base-12.5")
    config = cell.config(config)
    costs = cell.costs(config)
    assert round(costs["parameters"] / 1e6) == 204 and costs["tokens"] == 64 * 16 * 256
    assert costs["flops"] == 6 * costs["parameters"] * 64 * 16 * 256
    assert costs["attention_flops"] == 12 * 1024 * (256 + 16 / 2) * 12 * 64 * 16 * 256
    assert (config.stages.dynamics.data_fraction, config.stages.tokenizer.data_fraction) == (0.125, 1.0)


def test_the_fit_finds_a_line_and_says_how_far_points_lie_from_it():
    flops = 10.0 ** np.array([10, 11, 12, 13])
    rows = [{"flops": f, "training_loss": 5 - 0.25 * np.log10(f)} for f in flops]
    assert fit(rows) == pytest.approx({"a": 5.0, "b": -0.25, "r2": 1.0, "cells": 4})
    for row, error in zip(rows, (0.1, -0.1, -0.1, 0.1), strict=True):
        row["training_loss"] += error
    # Errors with no slope of their own: R² = 1 - 4·0.1² / (5·0.25² + 4·0.1²).
    assert fit(rows)["b"] == pytest.approx(-0.25) and fit(rows)["r2"] == pytest.approx(0.3125 / 0.3525)
    assert fit(rows[:2]) is None and fit([rows[0]] * 3) is None


def test_losses_are_the_last_tenth_and_the_last_held_out_one():
    history = [{"step": i, "loss": float(i)} for i in range(1, 31)]
    history[15:15] = [{"step": 15, "val/loss": 9.0}, {"step": 15, "data": "shares"}]
    assert losses(history) == {"training_loss": 29.0, "held_out_loss": 9.0}
    assert losses(history[:3]) == {"training_loss": 3.0, "held_out_loss": None}


def test_pixel_errors_count_every_clip_alike():
    def group(clips, value):
        frames = np.zeros((clips, 3, 2, 2, 3), np.uint8)
        frames[:, 1:] = value
        return Clips("t", "p", frames, *[np.zeros(0)] * 3)

    groups = [group(1, 51), group(3, 0)]
    assert pixel_mse(lambda g: g.frames[:, :1], groups, 1) == pytest.approx(0.2**2 / 4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sizes": {"big": (2, 8)}}, "scaling.sizes.big is .* such as"),
        ({"sizes": {"odd": (3, 8, 2)}}, "scaling.sizes.odd: num_layers"),
        ({"sizes": {}}, "one entry each"),
        ({"fractions": (0.0, 1.0)}, "ascend from above 0 to 1"),
        ({"fractions": (0.25, 0.5)}, "ascend from above 0 to 1"),
        ({"finetune": FINETUNE | {"step": 1}}, "did you mean scaling.finetune.steps"),
    ],
)
def test_what_is_no_study_is_refused(change, says):
    with pytest.raises(WhaleError, match=says):
        ScalingSettings.from_dict({"sizes": SIZES, "fractions": (1.0,), "finetune": FINETUNE} | change, "scaling")


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_a_stage_sees_some_of_the_data_and_no_more_than_all(fraction):
    with pytest.raises(WhaleError, match="data_fraction lies above 0"):
        StageSettings(data_fraction=fraction)


def test_a_study_without_its_group_or_its_store_trains_nothing(stores, tmp_path):
    config = override(tiny_scaling.get_config("least"), [("data.root", str(stores[0]))])
    with pytest.raises(WhaleError, match="--config.scaling.finetune.root=DIR"):
        scaling_study(config, tmp_path / "study")
    config.scaling.finetune.root = str(tmp_path / "nowhere")
    with pytest.raises(WhaleError, match="no data set at .*nowhere"):
        scaling_study(config, tmp_path / "study")
    with pytest.raises(WhaleError, match="no group `scaling`"):
        scaling_study(tiny.get_config(), tmp_path / "study")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_table(stores, tmp_path, whale):
    """The command of the README at its smallest, and again without its second cell, where it is killed and resumes."""
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    done = whale(*arguments(stores, whole, "--json"))
    assert done.status == 0, done.err
    table = json.loads(done.out)
    assert json.loads((whole / "scaling.json").read_text()) == table and table["cells"][0]["steps"] == 6
    assert (whole / "scaling.png").read_bytes().startswith(b"\x89PNG")

    for name in ("base", "w8-50"):
        shutil.copytree(whole / name, workdir / name)
    killed = subprocess.Popen(
        tiny.command(*arguments(stores, workdir)), cwd=tiny.ROOT, env=tiny.environment(), stderr=subprocess.DEVNULL
    )
    while killed.poll() is None and not (workdir / "w8-100/checkpoints/dynamics/3").is_dir():
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not (workdir / "w8-100/cell.json").exists()
    done = whale(*arguments(stores, workdir, "--json"))
    assert done.status == 0, done.err
    assert (workdir / "w8-50/cell.json").read_bytes() == (whole / "w8-50/cell.json").read_bytes()
    assert without_clock(json.loads(done.out)) == without_clock(table)

    for row in table["cells"]:
        assert row["flops"] == 6 * row["parameters"] * row["tokens"] and row["test_mse"]["after"] > 0
    assert len(table["cells"]) == 2 and table["fit"] == {"full_data": None, "all": None}
    _check_start(whole / "w8-50", stores, tmp_path)


def _check_start(cell, stores, tmp_path):
    """A stage that learns nothing ends with the parameters that it started from, and other networks are refused."""
    model, config = load(cell), Cell("w8", SIZES["w8"], 0.5).config(tiny_scaling.get_config("least"))
    config.data.root = str(stores[1])
    config.stages.dynamics.update({"start_from": str(cell), "max_lr": 0.0, "min_lr": 0.0, "steps": 1})
    train_alone("dynamics", config, tmp_path / "same", {name: model.params[name] for name in FROZEN})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "same").params, model.params)
    config.model.dynamics.transformer.width = 32
    with pytest.raises(WhaleError, match="another architecture: dynamics.transformer.width"):
        train_alone("dynamics", config, tmp_path / "other", {})
    with pytest.raises(WhaleError, match="holds no dynamics yet"):
        find_component(cell.parent / "base", "dynamics", make_world(config))
