"""Members of an ensemble train side by side as each would alone."""

import dataclasses
import functools
import itertools
import json
import shutil
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract import batch as batches
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.data.store.batches import LocalSource
from whale_jax.data.store.store import open_store
from whale_jax.jobs.configuration import make_stage, make_world, stages_of
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import alone
from whale_jax.training.step import TrainState, in_parts, make_step, step_key

STEPS = 3


OWN_FRAMES = {"own_frames": 0.5, "point_estimate": "mean"}


@pytest.fixture(scope="module", params=[{}, OWN_FRAMES, {"decode_mode": "maskgit"}], ids=["parallel", "own", "maskgit"])
def world(request):
    config = tiny.get_config()
    config.model.dynamics.update(request.param)
    return make_world(config)


@pytest.mark.slow
@pytest.mark.parametrize("own_batches", [True, False])
def test_every_member_trains_as_it_would_alone(world, own_batches):
    """Also where the gradient is clipped, which would couple members that shared a norm."""
    settings = StageSettings(members=3, max_lr=1e-2, warmup=1, steps=10, clip=0.05, weight_decay=0.1, batch_size=2)
    settings = dataclasses.replace(settings, own_batches=own_batches)
    ensemble = world.stages["ensemble"](world, ACTION_SPEC, settings)
    single = world.stages["dynamics"](world, ACTION_SPEC, settings)
    frozen = {name: world.fresh(name, jax.random.key(7)) for name in world.model.components}
    batch = random_batch(ensemble.batch_rows)
    rows = [slice(i, None, 2) if own_batches else slice(None) for i in range(2)]
    assert ensemble.batch_rows == (4 if own_batches else 2)
    tx, own_tx = ensemble.optimizer(), single.optimizer()
    params = nn.unbox(jax.jit(ensemble.init)(jax.random.key(0)))
    members = [jax.tree.map(lambda x, i=i: x[i], params) for i in range(2)]
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, members), strict=True))

    state = TrainState(jnp.int32(0), params, tx.init(params), {}, jnp.bool_(False))
    step = make_step(ensemble, 0, alone())
    for _ in range(STEPS):
        state, metrics = step(state, frozen, batch)
    assert np.isfinite(metrics["loss"]) and not metrics["failed"]

    @jax.jit
    def own_step(params, opt_state, step, i, batch):
        key = jax.random.split(step_key(0, ensemble, step), 2)[i]
        grads = jax.grad(lambda p: single.loss(p, frozen, batch, key, True)[0])(params)
        updates, opt_state = own_tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i, own in enumerate(members):
        opt_state = own_tx.init(own)
        for t in range(STEPS):
            own, opt_state = own_step(own, opt_state, t, i, jax.tree.map(lambda x, i=i: x[rows[i]], batch))
        together = jax.tree.map(lambda x, i=i: x[i], state.params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(own):
            got = functools.reduce(lambda tree, part: tree[part.key], path, together)
            np.testing.assert_allclose(got, leaf, rtol=2e-4, atol=2e-5, err_msg=f"{i} {jax.tree_util.keystr(path)}")


def random_batch(rows: int):
    """Frames and actions that differ from row to row."""
    rng, batch = np.random.default_rng(0), batches.example(rows, 4, tiny.SIDE, tiny.SIDE, 4)
    frames = rng.integers(0, 256, batch.frames.shape).astype(np.uint8)
    return dataclasses.replace(batch, frames=frames, actions=rng.uniform(-1, 1, batch.actions.shape).astype(np.float32))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_of_a_step_give_each_member_its_own_rows(accumulate):
    """Each part of a batch that is computed in parts has equally many rows of every member, and no row twice."""
    seen = [
        np.asarray(in_parts(part, 3))
        for part in np.asarray(in_parts(np.arange(3 * 8), accumulate) if accumulate > 1 else np.arange(24)[None])
    ]
    assert [x.shape for x in seen] == [(3, 8 // accumulate)] * accumulate
    assert sorted(np.concatenate(seen, axis=None)) == list(range(24))


def drawn(stage, source, shard=(0, 1)):
    """Opens the stage's batches as training does."""
    rows = stage.batch_rows // shard[1]
    return source.train(stage.name, rows, 4, 0, shard, 0.5, stage.data_order)


def test_members_see_batches_of_their_own_of_the_episodes_that_the_dynamics_see(tmp_path):
    source = LocalSource(open_store(tiny.write_store(tmp_path / "store", each=6)), 1 << 24)
    config = tiny.get_config()
    config.stages.ensemble.members = 4
    ensemble, dynamics = make_stage(config, "ensemble"), make_stage(config, "dynamics")
    stream, of_dynamics = drawn(ensemble, source), drawn(dynamics, source)
    batch, theirs = next(stream), next(of_dynamics)
    segments = np.stack([batch.episode, batch.start], axis=1)
    members = [set(map(tuple, part)) for part in np.asarray(in_parts(segments, 3))]
    members.append(set(map(tuple, np.stack([theirs.episode, theirs.start], axis=1))))
    assert [len(each) for each in members] == [8] * 4
    assert not any(a & b for a, b in itertools.combinations(members[:3], 2)), "no segment twice in an epoch"
    assert all(members[3] != each for each in members[:3])
    later = [next(of_dynamics) for _ in range(20)]
    assert set(batch.episode) <= {e for b in (theirs, *later) for e in b.episode}, "data_fraction takes the same ones"

    state = stream.get_state()
    wanted = [next(stream) for _ in range(3)]
    again = drawn(ensemble, source)
    again.set_state(json.loads(json.dumps(state)))
    for batch in wanted:
        jax.tree.map(np.testing.assert_array_equal, next(again), batch)
    halves = [drawn(ensemble, source, (i, 2)) for i in range(2)]
    one = [next(drawn(ensemble, source)), jax.tree.map(lambda *x: np.concatenate(x), *map(next, halves))]
    jax.tree.map(np.testing.assert_array_equal, *one)

    config.stages.ensemble.own_batches = False
    jax.tree.map(np.testing.assert_array_equal, next(drawn(make_stage(config, "ensemble"), source)), theirs)


def test_an_ensemble_that_began_with_shared_batches_goes_on_with_them_or_is_refused(trained, store, tmp_path, whale):
    """A checkpoint from before members had batches of their own says nothing of them."""
    workdir = Path(shutil.copytree(trained[0], tmp_path / "run"))
    shutil.rmtree(workdir / "checkpoints" / "ensemble")
    shared = tiny.train_arguments(store, workdir, "--config.stages.ensemble.own_batches=False", "--until=ensemble")
    assert whale(*shared).status == 0
    directory = workdir / "checkpoints" / "ensemble"
    (directory / "10").rename(tmp_path / "whole")
    meta = directory / "8" / "meta" / "metadata"
    values = json.loads(meta.read_text())
    for settings in values["config"]["stages"].values():
        del settings["own_batches"]
    meta.write_text(json.dumps(values))
    error = whale(*tiny.train_arguments(store, workdir)).error()
    assert "began with stages.ensemble.own_batches=False" in error
    assert "--config.stages.ensemble.own_batches=False" in error
    done = whale(*shared)
    assert done.status == 0 and "ensemble: resuming at step 8" in done.err
    tiny.assert_equal_trees(*(tiny.read_tree(step / "params") for step in (directory / "10", tmp_path / "whole")))


def test_an_ensemble_is_trained_only_where_it_is_asked_for():
    config = tiny.get_config()
    assert stages_of(config) == list(tiny.STAGES)
    config.stages.ensemble.members = 0
    assert stages_of(config) == list(tiny.COMPONENTS)
    with pytest.raises(WhaleError, match="members is 1, and an ensemble has 2 or more"):
        StageSettings(members=1)
