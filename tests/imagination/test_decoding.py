"""Filling a frame's masked tokens (MaskGIT), for any number of passes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from whale_jax.models.whale.decoding import choose, entropy, masked_after, maskgit_decode
from whale_jax.models.whale.dynamics import DynamicsSettings
from whale_jax.nn.transformer import TransformerSettings

V = 7


def settings(steps):
    transformer = TransformerSettings(num_layers=2, width=16, num_heads=2)
    return DynamicsSettings(V, 4, 16, transformer, decode_mode="maskgit", decode_steps=steps)


def decode(steps, num_tokens, temperature, predict=None, seed=0):
    """Decodes with logits that depend on what is known; returns ids, entropy and what each pass was given."""
    table = np.random.default_rng(seed).normal(size=(2, num_tokens, V)).astype(np.float32)

    def logits(ids, mask):
        known = jnp.where(mask, 0, ids + 1).sum(-1)
        return jnp.asarray(table) * (1.0 + 0.1 * jnp.cos(known)[:, None, None])

    def recorded(ids, mask, carry):
        step, seen_ids, seen_masks = carry
        return (predict or logits)(ids, mask), (step + 1, seen_ids.at[step].set(ids), seen_masks.at[step].set(mask))

    shape = (2, num_tokens)
    carry = (0, jnp.zeros((steps, *shape), jnp.int32), jnp.zeros((steps, *shape), bool))
    ids, h, (_, *seen) = maskgit_decode(recorded, carry, jax.random.key(seed), settings(steps), shape, temperature)
    first = (predict or logits)(jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool))
    np.testing.assert_allclose(h, entropy(first), rtol=1e-5)
    return np.asarray(ids), np.asarray(first), list(zip(*map(np.asarray, seen), strict=True))


def test_one_greedy_pass_is_the_arg_max_of_the_masked_pass():
    ids, first, passes = decode(1, 16, 0.0)
    assert len(passes) == 1 and passes[0][1].all()
    np.testing.assert_array_equal(ids, first.argmax(-1))


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 16])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 12])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_masks_shrink_and_known_tokens_stay(steps, num_tokens, temperature):
    ids, _, passes = decode(steps, num_tokens, temperature)
    counts = [mask.sum(-1) for _, mask in passes] + [np.zeros(2, int)]
    assert passes[0][1].all() and len(passes) <= steps
    for before, after in zip(counts, counts[1:], strict=False):
        assert (before[0] == before[1]) and (after < before).all() or not before.any()
    for (known_ids, mask), (later_ids, later_mask) in zip(passes, passes[1:], strict=False):
        assert not (later_mask & ~mask).any(), "a known token is masked again"
        np.testing.assert_array_equal(later_ids[~mask], known_ids[~mask])
    last_ids, last_mask = passes[-1]
    np.testing.assert_array_equal(ids[~last_mask], last_ids[~last_mask])
    assert ids.dtype == np.int32 and ids.min() >= 0 and ids.max() < V


def test_the_cosine_schedule():
    assert masked_after(256, 8) == [251, 236, 212, 181, 142, 97, 49, 0]
    assert masked_after(16, 4) == [14, 11, 6, 0]
    assert masked_after(256, 1) == [0]
    assert masked_after(100, 8)[:7] == [math.floor(100 * math.cos(math.pi / 2 * (s + 1) / 8)) for s in range(7)]
    assert masked_after(2, 3) == [1, 0, 0]


def test_passes_follow_the_schedule():
    _, _, passes = decode(4, 16, 1.0)
    assert [int(mask[0].sum()) for _, mask in passes] == [16, 14, 11, 6]


def test_the_most_confident_tokens_are_kept_first():
    """Greedy: after the first pass, every kept token is at least as likely as every one masked again."""
    _, first, passes = decode(4, 16, 0.0)
    likelihood = np.asarray(jax.nn.log_softmax(first)).max(-1)
    for row, mask in zip(likelihood, passes[1][1], strict=True):
        assert 0 < mask.sum() < 16
        assert row[~mask].min() >= row[mask].max()


def test_certain_logits_survive_any_number_of_passes():
    """Certain logits leave one answer, whatever the temperature, noise and schedule."""
    wanted = np.random.default_rng(3).integers(0, V, (2, 16))

    def predict(ids, mask):
        return 1e4 * jax.nn.one_hot(wanted, V)

    for steps in (1, 5, 20):
        np.testing.assert_array_equal(decode(steps, 16, 1.0, predict)[0], wanted)


def test_sampling_follows_the_temperature():
    logits = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0]), (4000, 3))
    np.testing.assert_array_equal(choose(jax.random.key(0), logits, 0), 2)
    for temperature in (0.5, 2.0):
        drawn = np.asarray(choose(jax.random.key(0), logits, temperature))
        shares = np.bincount(drawn, minlength=3) / len(drawn)
        np.testing.assert_allclose(shares, jax.nn.softmax(logits[0] / temperature), atol=0.03)


def test_entropy_in_nats():
    logits = jnp.stack([jnp.zeros((3, V)), 1e4 * jax.nn.one_hot(jnp.arange(3), V)])
    np.testing.assert_allclose(entropy(logits), [math.log(V), 0.0], atol=1e-5)
    half = jnp.log(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]) + 1e-20)
    np.testing.assert_allclose(entropy(half), math.log(2) / 2, rtol=1e-5)
