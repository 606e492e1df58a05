"""Members of an ensemble train side by side as each would alone."""

import functools

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
from whale_jax.jobs.configuration import make_world, stages_of
from whale_jax.training.settings import StageSettings
from whale_jax.training.sharding import alone
from whale_jax.training.step import TrainState, make_step, step_key

STEPS = 3


@pytest.fixture(scope="module", params=["parallel", "maskgit"])
def world(request):
    config = tiny.get_config()
    config.model.dynamics.decode_mode = request.param
    return make_world(config)


@pytest.mark.slow
def test_every_member_trains_as_it_would_alone(world):
    """Also where the gradient is clipped, which would couple members that shared a norm."""
    settings = StageSettings(members=3, max_lr=1e-2, warmup=1, steps=10, clip=0.05, weight_decay=0.1)
    ensemble = world.stages["ensemble"](world, ACTION_SPEC, settings)
    single = world.stages["dynamics"](world, ACTION_SPEC, settings)
    frozen = {name: world.fresh(name, jax.random.key(7)) for name in world.model.components}
    batch = batches.example(2, 4, tiny.SIDE, tiny.SIDE, 4)
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
    def own_step(params, opt_state, step, i):
        key = jax.random.split(step_key(0, ensemble, step), 2)[i]
        grads = jax.grad(lambda p: single.loss(p, frozen, batch, key, True)[0])(params)
        updates, opt_state = own_tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    for i, own in enumerate(members):
        opt_state = own_tx.init(own)
        for t in range(STEPS):
            own, opt_state = own_step(own, opt_state, t, i)
        together = jax.tree.map(lambda x, i=i: x[i], state.params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(own):
            got = functools.reduce(lambda tree, part: tree[part.key], path, together)
            np.testing.assert_allclose(got, leaf, rtol=2e-4, atol=2e-5, err_msg=f"{i} {jax.tree_util.keystr(path)}")


def test_an_ensemble_is_trained_only_where_it_is_asked_for():
    config = tiny.get_config()
    assert stages_of(config) == list(tiny.STAGES)
    config.stages.ensemble.members = 0
    assert stages_of(config) == list(tiny.COMPONENTS)
    with pytest.raises(WhaleError, match="members is 1, and an ensemble has 2 or more"):
        StageSettings(members=1)
