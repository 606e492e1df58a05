"""Averaged weights: their arithmetic, what uses them, and that a run without them is what it was."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract import batch as batches
from whale_jax.imagination.loading import load
from whale_jax.jobs.configuration import make_stage
from whale_jax.jobs.pretrain import pretrain
from whale_jax.training.checkpoint import read_item
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import alone
from whale_jax.training.step import abstract_state, make_step


@functools.cache
def steps_of(ema: float, count: int):
    """The states of a stage after each of some steps, the first included."""
    config = tiny.get_config()
    config.stages.behaviour.ema = ema
    stage, placement = make_stage(config, "behaviour"), alone()
    state, step = abstract_state(stage, 0, placement)[0](), make_step(stage, 0, placement)
    batch, states = batches.example(8, 4, tiny.SIDE, tiny.SIDE, 4), []
    for _ in range(count + 1):
        states.append(jax.tree.map(np.asarray, state))
        state, _ = step(state, {}, batch)
    return states


def test_the_average_is_that_of_the_weights_step_by_step():
    states = steps_of(0.9, 3)
    wanted = states[0].params
    chex.assert_trees_all_equal(states[0].averaged, wanted)
    for state in states[1:]:
        wanted = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, wanted, state.params)
        chex.assert_trees_all_close(state.averaged, wanted, rtol=1e-5, atol=1e-7)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (wanted, states[-1].params)), strict=True))


def test_averaging_does_not_change_what_is_trained():
    plain, averaged = steps_of(0.0, 3)[-1], steps_of(0.9, 3)[-1]
    assert plain.averaged is None and plain.best_guess is plain.params and averaged.best_guess is averaged.averaged
    # Another program rounds otherwise.
    chex.assert_trees_all_close(plain.params, averaged.params, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("averaged")
    config = tiny.get_config()
    config.data.root = str(tiny.write_store(root / "store"))
    config.stages.tokenizer.ema = 0.5
    config.stages.tokenizer.save_every = 4
    pretrain(config, root / "run", until="behaviour")
    return root / "run"


@pytest.mark.slow
def test_a_checkpoint_holds_both_and_later_stages_and_imagination_take_the_average(run):
    tokenizer, behaviour = (run / "checkpoints" / name for name in ("tokenizer", "behaviour"))
    averaged, trained = read_item(tokenizer, 10, "averaged"), read_item(tokenizer, 10, "trained")
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (averaged, trained)), strict=True))
    chex.assert_trees_all_equal(read_item(tokenizer, 10, "params")["tokenizer"], averaged)
    chex.assert_trees_all_equal(read_item(behaviour, 10, "params")["tokenizer"], averaged)
    # The checkpoint before the last one is of an unfinished stage, which resumes from the trained weights.
    chex.assert_trees_all_equal(read_item(tokenizer, 8, "params")["tokenizer"], read_item(tokenizer, 8, "trained"))
    chex.assert_trees_all_equal(
        jax.tree.map(np.asarray, load(tokenizer / "8").params["tokenizer"]), read_item(tokenizer, 8, "averaged")
    )


@pytest.mark.slow
def test_a_run_that_averages_resumes_bit_for_bit(run, tmp_path):
    config = tiny.get_config()
    config.data.root = str(run.parent / "store")
    config.stages.tokenizer.update({"ema": 0.5, "save_every": 4, "steps": 10})
    again = tmp_path / "run"
    (again / "checkpoints").mkdir(parents=True)
    target = again / "checkpoints" / "tokenizer" / "8"
    target.parent.mkdir()
    target.symlink_to(run / "checkpoints" / "tokenizer" / "8")
    pretrain(config, again, until="tokenizer")
    for item in ("params", "averaged", "trained"):
        one, other = (read_item(root / "checkpoints" / "tokenizer", 10, item) for root in (run, again))
        chex.assert_trees_all_equal(one, other)
    meta = json.loads((again / "checkpoints/tokenizer/10/meta/metadata").read_text())
    assert meta["config"]["stages"]["tokenizer"]["ema"] == 0.5


def test_a_share_that_no_average_can_keep():
    for value in (1.0, -0.1):
        with pytest.raises(WhaleError, match="ema is from 0 up and below 1"):
            StageSettings(ema=value)
    assert jnp.isfinite(StageSettings(ema=0.999).ema)
