"""Rollouts against a computation by hand, and what an imagined frame may depend on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.imagination.uncertainty.estimators import Entropy
from whale_jax.models.whale import window

CONTEXT, HORIZON = 2, 6  # longer than the window of 4


@pytest.fixture(scope="module")
def run(world):
    """Frames and entropies of a rollout."""
    imagine = jax.jit(tiny.rollout(world.world, Entropy()))

    def run(frames, actions):
        frames, estimates = imagine(world.params, frames, actions, jax.random.key(0))
        return frames, estimates["uncertainty"]

    return run


@pytest.fixture(scope="module")
def remembering(world):
    """(P, frames, actions) to the frames and entropies of a rollout that infers behaviour from P frames."""

    def run(history, frames, actions):
        imagine = jax.jit(tiny.rollout(tiny.remembering(world, history).world, Entropy()))
        frames, estimates = imagine(world.params, frames, actions, jax.random.key(0))
        return frames, estimates["uncertainty"]

    return run


@pytest.fixture(scope="module")
def by_hand(world):
    """One step from real windows without padding: frames, past actions, ids, z and a_t to the next of each."""
    networks, params = world.world.model.networks, world.params
    settings = networks.settings

    def z_of(frames, actions):
        log_p = networks.prior.apply({"params": params["behaviour"]["prior"]}, frames, actions)
        return jax.nn.one_hot(log_p.argmax(-1), log_p.shape[-1]).reshape(*log_p.shape[:2], -1)

    def next_frame(frames, ids, z, actions):
        """Arguments end at time t; those for the dynamics are cut to T - 1."""
        apply = functools.partial(networks.dynamics.apply, {"params": params["dynamics"]})
        past = settings.num_frames - 1
        ids_w, actions_w = ids[:, -past:], actions[:, -past:]
        z_w = z[:, -past:]
        if settings.dynamics.decode_mode == "maskgit":
            blank = jnp.full_like(ids_w[:, :1], 3)
            grown = jnp.concatenate([ids_w, blank], 1)
            mask = jnp.zeros(grown.shape, bool).at[:, -1].set(True)
            extra = [jnp.concatenate([x, 7.0 * x[:, -1:]], 1) for x in (actions_w, z_w)]
            logits = apply(grown, *extra, mask)[:, -1]
        else:
            logits = apply(ids_w, actions_w, z_w)[:, -1]
        new_ids = jnp.concatenate([ids, logits.argmax(-1)[:, None].astype(ids.dtype)], 1)
        tokenizer = functools.partial(networks.tokenizer.apply, {"params": params["tokenizer"]}, method="decode")
        frame = jnp.round(tokenizer(new_ids[:, -settings.num_frames :])[:, -1] * 255.0)
        log_probs = jax.nn.log_softmax(logits)
        return new_ids, frame.astype(jnp.uint8), -(jnp.exp(log_probs) * log_probs).sum(-1).mean(-1)

    def encode(frames):
        return networks.tokenizer.apply({"params": params["tokenizer"]}, frames, method="encode")

    return jax.jit(z_of), jax.jit(next_frame), jax.jit(encode)


def test_the_first_frame_equals_a_computation_by_hand(run, by_hand, inputs):
    z_of, next_frame, encode = by_hand
    frames, actions = inputs(CONTEXT, HORIZON)
    imagined, entropies = run(frames, actions)
    known = actions[:, :CONTEXT]
    _, frame, h = next_frame(frames, encode(frames), z_of(frames, known), known)
    np.testing.assert_array_equal(imagined[:, 0], frame)
    np.testing.assert_allclose(entropies[:, 0], h, rtol=1e-4)


@pytest.mark.parametrize(("context", "history", "horizon"), [(1, 0, 6), (2, 0, 6), (4, 0, 6), (3, 5, 9), (2, 8, 9)])
def test_every_step_equals_a_computation_by_hand(world, remembering, by_hand, inputs, context, history, horizon):
    """Also where a full window of 4 is cut to its newest 2, and the history of the prior to its newest half.

    The prior sees imagined frames, and past z stay as inferred.
    """
    z_of, next_frame, encode = by_hand
    size, most = world.num_frames, history or world.num_frames
    frames, actions = inputs(context, horizon)
    imagined, entropies = remembering(history, frames, actions)
    ids, z, seen, held = encode(frames), z_of(frames, actions[:, :context])[:, :-1], frames, context
    known = context
    for j in range(horizon):
        t = context - 1 + j
        if held == size:
            held = size // 2
            known = known if known + size - held <= most else most // 2
        recent = actions[:, t - held + 1 : t + 1]
        z = jnp.concatenate([z, z_of(seen[:, -known:], actions[:, t - known + 1 : t + 1])[:, -1:]], 1)
        ids, frame, h = next_frame(seen[:, -held:], ids[:, -held:], z[:, -held:], recent)
        np.testing.assert_array_equal(imagined[:, j], frame, err_msg=f"imagined frame {j}")
        np.testing.assert_allclose(entropies[:, j], h, rtol=1e-4)
        seen, held, known = np.concatenate([seen, frame[:, None]], 1), held + 1, known + 1


def test_tokens_are_the_codes_nearest_to_the_mean_where_that_is_asked_for(parallel_world, inputs):
    loaded, (frames, actions) = parallel_world, inputs(CONTEXT, 2)
    model = loaded.world.model.with_dynamics(point_estimate="mean")
    world, networks, params = dataclasses.replace(loaded.world, model=model), model.networks, loaded.params
    imagined, _ = jax.jit(tiny.rollout(world, Entropy()))(params, frames, actions, jax.random.key(0))
    ids, codebook = networks.encode(params, frames), np.asarray(params["tokenizer"]["quantizer"]["codebook"])
    log_p = networks.infer_behaviour(params, frames, actions[:, :CONTEXT])
    z = jax.nn.one_hot(log_p.argmax(-1), log_p.shape[-1]).reshape(*log_p.shape[:2], -1)
    logits = np.asarray(networks.predict_tokens(params, ids, actions[:, :CONTEXT], z))[:, -1]
    mean = np.asarray(jax.nn.softmax(logits)) @ codebook
    chosen = np.square(mean[:, :, None] - codebook).sum(-1).argmin(-1)
    assert (chosen != logits.argmax(-1)).any()
    drawn = networks.decode(params, np.concatenate([ids, chosen[:, None]], 1))[:, -1]
    np.testing.assert_array_equal(imagined[:, 0], np.round(np.asarray(drawn) * 255.0))


def test_a_longer_history_changes_what_follows_a_cut(remembering, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    (_, short), (_, long) = (remembering(history, frames, actions) for history in (0, 8))
    np.testing.assert_array_equal(long[:, :2], short[:, :2])  # up to the window of 4
    assert (long[:, 2:] != short[:, 2:]).any()


def test_a_long_rollout_is_deterministic_and_moves(run, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    imagined, entropies = run(frames, actions)
    assert imagined.shape == (2, HORIZON, 16, 16, 3) and imagined.dtype == jnp.uint8
    assert entropies.shape == (2, HORIZON) and np.isfinite(entropies).all() and np.all(entropies > 0)
    again, entropies_again = run(frames, actions)
    np.testing.assert_array_equal(again, imagined)
    np.testing.assert_array_equal(entropies_again, entropies)
    changes = (np.diff(np.asarray(imagined, int), axis=1) != 0).any((2, 3, 4))
    assert changes.any(axis=1).all(), "a trajectory stands still from its first imagined frame"


@pytest.mark.parametrize("j", range(HORIZON))
def test_an_imagined_frame_depends_on_its_action_and_none_later(run, inputs, j):
    frames, actions = inputs(CONTEXT, HORIZON)
    changed = actions.copy()
    changed[:, CONTEXT - 1 + j :] *= -1.0
    (before, h_before), (after, h_after) = run(frames, actions), run(frames, changed)
    np.testing.assert_array_equal(after[:, :j], before[:, :j])
    np.testing.assert_array_equal(h_after[:, :j], h_before[:, :j])
    assert (np.asarray(h_after[:, j]) != h_before[:, j]).all()
    if j == 0:  # later, the arg-max may happen to stay
        assert np.any(np.asarray(after) != before)


def test_rows_do_not_know_each_other(run, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    other_frames, other_actions = inputs(CONTEXT, HORIZON, seed=1)
    other_frames[0], other_actions[0] = frames[0], actions[0]
    (before, h_before), (after, h_after) = run(frames, actions), run(other_frames, other_actions)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(h_after[0], h_before[0])
    assert np.any(np.asarray(after[1]) != before[1])


def test_given_frames_matter(run, inputs):
    """Each given frame and the action between them changes what follows."""
    frames, actions = inputs(CONTEXT, HORIZON)
    before = np.asarray(run(frames, actions)[1])
    for c in range(CONTEXT):
        changed = frames.copy()
        changed[:, c] = 255 - changed[:, c]
        assert (np.asarray(run(changed, actions)[1])[:, 0] != before[:, 0]).all()
    changed = actions.copy()
    changed[:, 0] *= -1.0
    assert (np.asarray(run(frames, changed)[1])[:, 0] != before[:, 0]).all()


def test_steps_keep_the_history_and_start_leaves_the_future_blank(world, inputs):
    frames, actions = inputs(CONTEXT, HORIZON)
    networks, params = world.world.model.networks, world.params
    state = jax.jit(functools.partial(window.start, networks))(params, frames, actions[:, : CONTEXT - 1])
    assert int(state.time) == CONTEXT - 1
    assert not np.any(state.history.frames[:, CONTEXT:]) and not np.any(state.actions[:, CONTEXT - 1 :])
    advance = jax.jit(functools.partial(window.advance, networks, temperature=0.0))
    after, (frame, _) = advance(params, state, actions[:, CONTEXT - 1], jax.random.key(0))
    assert int(after.time) == CONTEXT
    np.testing.assert_array_equal(after.history.frames[:, :CONTEXT], frames)
    np.testing.assert_array_equal(after.history.frames[:, CONTEXT], frame)
    np.testing.assert_array_equal(after.history.actions[:, :CONTEXT], actions[:, :CONTEXT])
    np.testing.assert_array_equal(after.actions[:, :CONTEXT], actions[:, :CONTEXT])
    np.testing.assert_array_equal(after.ids[:, :CONTEXT], state.ids[:, :CONTEXT])
    np.testing.assert_array_equal(after.z[:, : CONTEXT - 1], state.z[:, : CONTEXT - 1])


def test_memory_grows_with_the_window_and_not_with_the_horizon(world, inputs):
    """Beyond what is handed back, 256 steps need what 16 need."""

    def working_bytes(horizon):
        frames, actions = inputs(1, horizon)
        run = jax.jit(tiny.rollout(world.world))
        return (
            run.lower(world.params, frames, actions, jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes
        )

    handed_back = 240 * 2 * (16 * 16 * 3 + 4 * 4 + 4)  # frames, actions, entropies of two trajectories
    assert working_bytes(256) - working_bytes(16) < 2 * handed_back
