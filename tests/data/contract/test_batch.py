"""The contract of a batch, an episode and an action spec."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.data.contract import batch as batches
from whale_jax.data.contract.actions import ActionSpec


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", np.zeros((2, 3, 8, 8, 3), np.float32)),
        ("frames", np.zeros((2, 3, 8, 8, 4), np.uint8)),
        ("actions", np.zeros((2, 2, 4), np.float32)),
        ("actions", np.full((2, 3, 4), np.nan, np.float32)),
        ("rewards", np.full((2, 3), np.inf, np.float32)),
        ("rewards", np.zeros((2, 3), np.float64)),
        ("frame_mask", np.ones((2, 3), np.uint8)),
        ("action_mask", np.ones((3, 2), bool)),
        ("episode", np.zeros(2, np.int64)),
        ("start", np.zeros((2, 1), np.int32)),
    ],
)
def test_validate_names_the_field_that_is_wrong(field, value):
    good = batches.example(2, 3, 8, 8, 4)
    assert batches.validate(good) is good
    with pytest.raises(WhaleError, match=field):
        batches.validate(good.replace(**{field: value}))


def test_an_action_needs_its_frame():
    bad = batches.example(2, 3, 8, 8, 4).replace(frame_mask=np.zeros((2, 3), bool))
    with pytest.raises(WhaleError, match="action_mask"):
        batches.validate(bad)


def test_a_batch_is_a_pytree_that_jit_takes():
    batch = batches.example(2, 3, 8, 8, 4)
    out = jax.jit(lambda b: b.replace(rewards=b.rewards + b.frame_mask))(batch)
    np.testing.assert_array_equal(out.rewards, np.ones((2, 3)))


@pytest.mark.parametrize("field", ["frames", "actions", "rewards", "success"])
def test_episode_validate_names_the_field_of_another_length(make_episode, field):
    episode = make_episode(0, 5)
    assert episode.validate() is episode
    with pytest.raises(WhaleError, match=field if field != "actions" else "frames"):
        dataclasses.replace(episode, **{field: getattr(episode, field)[:-1]}).validate()


SPEC = ActionSpec(("x", "grip"), ("delta", "gripper"), ("0.01 m", "1"), (-2, 0), (6, 1), 5)


@pytest.mark.parametrize("xp", [np, jnp])
def test_normalise_maps_the_range_to_minus_one_to_one_and_back(xp):
    actions = xp.asarray([[-2, 0], [2, 0.5], [6, 1]], dtype="float32")
    normal = SPEC.normalise(actions)
    assert isinstance(normal, type(actions)) and normal.dtype == np.float32
    np.testing.assert_allclose(normal, [[-1, -1], [0, 0], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(SPEC.denormalise(normal), actions, atol=1e-6)


@pytest.mark.parametrize(("value", "problem"), [(np.nan, "not finite"), (6.001, "outside -2 to 6")])
def test_validate_names_dimension_and_step(value, problem):
    actions = np.zeros((4, 2), np.float32)
    actions[3, 0] = value
    with pytest.raises(WhaleError, match=rf"log 7: action 'x' \(dimension 0\) at step 3 is .*{problem}"):
        SPEC.validate(actions, "log 7")


@pytest.mark.parametrize("xp", [np, jnp])
def test_beyond_quantiles_an_action_is_the_end_of_the_range(xp):
    spec = dataclasses.replace(SPEC, range_is="quantiles")
    actions = xp.asarray([[-40, 0.5], [2, 9]], dtype="float32")
    np.testing.assert_allclose(spec.normalise(spec.validate(np.asarray(actions))), [[-1, 0], [0, 1]], atol=1e-6)
    assert isinstance(spec.normalise(actions), type(actions))
    with pytest.raises(WhaleError, match="not finite"):
        spec.validate(np.full((2, 2), np.nan))
    with pytest.raises(WhaleError, match="quantiles"):
        dataclasses.replace(SPEC, range_is="mean")


def test_specs_that_do_not_say_where_a_gripper_opens_go_on_fitting():
    older = {k: v for k, v in SPEC.to_json().items() if k not in ("frame", "opens", "range_is")}
    newer = dataclasses.replace(SPEC, frame="base", opens="low")
    ActionSpec.from_json(older).check_same(newer, "there")
    with pytest.raises(WhaleError, match="opens"):
        newer.check_same(dataclasses.replace(newer, opens="high"), "there")


def test_validate_lets_rounding_pass_and_refuses_another_width():
    SPEC.validate(np.array([[6.00005, 1.0]]))
    with pytest.raises(WhaleError, match="2 dimensions"):
        SPEC.validate(np.zeros((4, 7)))


def test_action_spec_survives_json_and_refuses_nonsense():
    assert ActionSpec.from_json(SPEC.to_json()) == SPEC
    with pytest.raises(WhaleError, match="rate_hz"):
        ActionSpec.from_json({k: v for k, v in SPEC.to_json().items() if k != "rate_hz"})
    with pytest.raises(WhaleError, match="low must be below high"):
        dataclasses.replace(SPEC, high=(-2, 1))
    with pytest.raises(WhaleError, match="valid kinds"):
        dataclasses.replace(SPEC, kinds=("delta", "grip"))
