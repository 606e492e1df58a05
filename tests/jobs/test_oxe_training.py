"""The main job on Open X-Embodiment data, from the command line."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
import oxe_schemas as schemas
from oxe_schemas import SAMPLE

import whale_jax
from whale_jax.base.workdir import Workdir
from whale_jax.data.oxe.recipes import RECIPES, TABLETOP
from whale_jax.data.oxe.standard import to_mixture
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import ProtocolSettings, read_clips
from whale_jax.jobs.configuration import load_config, stages_of
from whale_jax.jobs.source import frames_needed, open_source
from whale_jax.training.checkpoint import read_meta, steps_in

CONFIG = tiny.ROOT / "tests" / "tiny_oxe.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("oxe")
    schemas.write_all(path, episodes=4, steps=7, side=tiny.SIDE)
    return path


def train(root, workdir, *more):
    arguments = [f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data.root={root}", *more]
    return tiny.whale("train", *arguments)


@pytest.mark.slow
def test_all_stages_train_on_all_27(root, tmp_path):
    workdir = tmp_path / "run"
    done = train(root, workdir)
    assert done.status == 0, done.err
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert sorted(metrics["run"]["dataset"]["tasks"]) == sorted(RECIPES)
    tokenizer, dynamics = (Workdir(workdir).checkpoints(name) for name in ("tokenizer", "dynamics"))
    meta = read_meta(tokenizer, steps_in(tokenizer)[-1])
    assert set(meta.specs) == set(RECIPES) and meta.specs["droid"]["rate_hz"] == 15
    drawn = {}
    for stage in (tokenizer, dynamics):
        lines = (workdir / "history" / f"{stage.name}.jsonl").read_text().splitlines()
        drawn[stage.name] = next(e["data"] for e in map(json.loads, lines) if "data" in e)
    assert "kuka" in drawn["tokenizer"] and "kuka" not in drawn["dynamics"] and TABLETOP[0] in drawn["dynamics"]
    again = tiny.whale("evaluate", f"--checkpoint={workdir}", f"--output={tmp_path / 'again'}", "--no-fvd")
    assert again.status == 0, again.err
    mixed, own = whale_jax.load(workdir), whale_jax.load(workdir, dataset="droid")
    assert mixed.episodes == Workdir(workdir).held_out and open_store(mixed.episodes).names("split") == ["valid"]
    raw = np.random.default_rng(0).normal(size=(1, 4, 7)).astype(np.float32)
    frames = np.zeros((1, 2, tiny.SIDE, tiny.SIDE, 3), np.uint8)
    futures = [model.imagine(frames, a).frames for model, a in ((own, raw), (mixed, to_mixture(raw, own.action_spec)))]
    np.testing.assert_array_equal(*futures)
    with pytest.raises(whale_jax.WhaleError, match="droid"):
        whale_jax.load(workdir, dataset="droids")


def test_what_is_missing_is_named_and_can_be_allowed(root, tmp_path):
    part = tmp_path / "part"
    for name in ("viola", "toto"):
        shutil.copytree(root / name, part / name)
    refused = train(part, tmp_path / "run")
    assert refused.status == 2 and "lacks 25 of the mixture's 27 data sets: fractal20220817_data, kuka" in refused.err
    assert not (tmp_path / "run" / "checkpoints").exists()
    done = train(part, tmp_path / "run", "--config.data.allow_missing=True", "--until=tokenizer")
    assert done.status == 0, done.err
    assert "Left out, for they are not there" in done.err and "viola" in done.err


def test_a_mixture_without_a_root_is_refused(tmp_path):
    done = train("", tmp_path / "run")
    assert done.status == 2 and "--config.data.root=DIR" in done.err


@pytest.mark.slow
@pytest.mark.skipif(SAMPLE is None, reason="bridge_sample is not here; name its directory with WHALE_BRIDGE_SAMPLE")
def test_the_published_config_trains_on_real_episodes_and_its_clips_fit_them(tmp_path):
    """Two steps a stage of thinner networks; data, frames, batches and clips are the config's own."""
    config, workdir = load_config("bridge_small"), tmp_path / "run"
    config.data.root, config.data.index = str(SAMPLE), str(tmp_path / "index")
    thin = {f"stages.{stage}.steps": 2 for stage in stages_of(config)}
    for name in ("tokenizer.encoder", "tokenizer.decoder", "dynamics.transformer"):
        thin |= {f"model.{name}.num_layers": 2, f"model.{name}.width": 32}
    thin |= {"data.root": config.data.root, "data.index": config.data.index}
    arguments = [f"--config.{key}={value}" for key, value in thin.items()]
    done = tiny.whale("train", "--config=bridge_small", f"--workdir={workdir}", "--until=dynamics", *arguments)
    assert done.status == 0, done.err
    history = [json.loads(line) for line in (workdir / "history" / "dynamics.jsonl").read_text().splitlines()]
    assert any(np.isfinite(entry.get("val/loss", np.nan)) for entry in history)
    protocol = ProtocolSettings.of(config.evaluation)
    store = open_source(config, workdir).report_store(tmp_path / "held-out", protocol.episodes, frames_needed(protocol))
    (clips,) = read_clips(store, protocol)
    assert clips.frames.shape == (2, 9, 64, 64, 3) and clips.actions.shape == (2, 8, 7)
    assert stages_of(config) == ["tokenizer", "behaviour", "dynamics"] and not clips.rewards.any()
