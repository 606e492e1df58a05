"""Retraced actions by the worked example, and branches against rollouts from earlier starts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.imagination.uncertainty.retracing import additive_dimensions, retraced_action

TOY = ActionSpec(("x", "grip"), ("delta", "gripper"), ("m", ""), (-1, -1), (1, 1), 10.0)
ADDITIVE = additive_dimensions(ACTION_SPEC)


def test_the_worked_example():
    """Position integrates, the gripper is absolute: every branch ends at o_4 = (1.0, +1)."""
    actions = np.array([(0.2, -1), (0.4, -1), (-0.1, 1), (0.5, 1)], np.float32)
    positions = np.concatenate([[0.0], actions[:, 0].cumsum()])
    for k, each in enumerate((0.5, 0.2, 0.8 / 3, 0.25)):
        sub = np.asarray(retraced_action(actions[None, 3 - k :], additive_dimensions(TOY)))[0]
        np.testing.assert_allclose(sub, [each, 1.0], rtol=1e-6)
        np.testing.assert_allclose(positions[3 - k] + (k + 1) * sub[0], 1.0, rtol=1e-6)


def test_retraced_actions_stay_in_the_box_and_do_not_mind_the_normalisation():
    spec = dataclasses.replace(ACTION_SPEC, low=(-2, 0, -1, 0), high=(1, 3, 5, 1))
    raw = np.random.default_rng(0).uniform(spec.low, spec.high, (50, 4, 4)).astype(np.float32)
    sub = np.asarray(retraced_action(raw, ADDITIVE))
    spec.validate(sub)
    through = spec.denormalise(np.asarray(retraced_action(spec.normalise(raw), ADDITIVE)))
    np.testing.assert_allclose(through, sub, atol=1e-5)


def test_additive_dimensions_follow_the_spec():
    assert ADDITIVE.tolist() == [True, True, True, False]
    mixed = dataclasses.replace(ACTION_SPEC, kinds=("delta", "absolute", "absolute", "gripper"))
    assert additive_dimensions(mixed).tolist() == [True, False, False, False]
    absolute = dataclasses.replace(ACTION_SPEC, kinds=("absolute",) * 3 + ("gripper",))
    with pytest.raises(WhaleError, match="none of x, y, z, gripper is a delta"):
        additive_dimensions(absolute)


@pytest.fixture(scope="module")
def branches(world):
    """(frames, past actions, a_t, K) to the branches' frames, which of them exist, and the ordinary prediction."""
    model = world.world.model

    @functools.partial(jax.jit, static_argnames=("steps", "hold_z"))
    def run(frames, past, action, steps, hold_z=False):
        carry = model.start(world.params, frames, past)
        carry, plain = model.step(world.params, carry, action[:, None], jax.random.key(0), 0.0)
        taken = jnp.concatenate([past, action[:, None]], axis=1)
        back = [taken[:, max(0, taken.shape[1] - k - 1) :] for k in steps]
        held = jnp.stack([retraced_action(x, ADDITIVE) for x in back], axis=1)
        held = jnp.repeat(held[:, :, None], max(steps) + 1, axis=2)
        retraced = model.branch(world.params, carry, steps, held, hold_z)
        exists = past.shape[1] >= np.array(steps)
        return retraced.swapaxes(0, 1), exists, plain.frames[:, 0]

    return run


@pytest.mark.parametrize("hold_z", [False, True])
def test_no_step_back_is_the_ordinary_prediction(branches, inputs, hold_z):
    frames, actions = inputs(3, 1)
    retraced, exists, plain = branches(frames, actions[:, :2], actions[:, 2], (0,), hold_z)
    np.testing.assert_array_equal(retraced[0], plain)
    assert exists.tolist() == [True]


def test_a_branch_is_a_rollout_from_an_earlier_start(world, branches, inputs):
    frames, actions = inputs(3, 1)
    retraced, exists, _ = branches(frames, actions[:, :2], actions[:, 2], (1, 2, 0))
    assert exists.all()
    for k, got in zip((1, 2, 0), retraced, strict=True):
        sub = np.asarray(retraced_action(actions[:, 2 - k :], ADDITIVE))
        known = actions[:, : 2 - k]
        repeated = np.concatenate([known, np.repeat(sub[:, None], k + 1, axis=1)], axis=1)
        run = jax.jit(tiny.rollout(world.world))
        imagined, _ = run(world.params, frames[:, : 3 - k], repeated, jax.random.key(0))
        np.testing.assert_array_equal(got, imagined[:, -1], err_msg=f"k = {k}")


def test_branches_differ_where_the_way_differs(branches, inputs):
    frames, actions = inputs(3, 1)
    retraced, _, plain = branches(frames, actions[:, :2], actions[:, 2], (1, 2))
    assert (np.asarray(retraced) != np.asarray(plain)).any((2, 3, 4)).all()


def test_starts_before_the_first_frame_do_not_exist_and_disturb_nothing(branches, inputs):
    frames, actions = inputs(2, 1)
    arguments = frames, actions[:, :1], actions[:, 1]
    alone, _, _ = branches(*arguments, (1,))
    retraced, exists, _ = branches(*arguments, (1, 2, 3))
    assert exists.tolist() == [True, False, False]
    np.testing.assert_array_equal(retraced[0], alone[0])
    assert jnp.isfinite(retraced.astype(jnp.float32)).all()
