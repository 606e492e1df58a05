"""What each network knows at time t, bit-exact (docs/method.md: tokenizer §3, behaviour §4, dynamics §5)."""

import functools

import jax
import numpy as np
import pytest

from whale_jax.models.whale.behaviour import HistoryEncoder

INDICES = range(4)


@pytest.fixture(scope="module")
def tokenizer(networks, large_params):
    params = large_params(networks, "tokenizer")
    apply = functools.partial(networks.tokenizer.apply, {"params": params})
    return {name: jax.jit(functools.partial(apply, method=name)) for name in ("latents", "decode", "encode")}


@pytest.fixture(scope="module")
def behaviour(networks, large_params):
    params = large_params(networks, "behaviour")
    modules = {"prior": networks.prior, "policy": networks.policy, "posterior": networks.posterior}
    return {name: jax.jit(functools.partial(m.apply, {"params": params[name]})) for name, m in modules.items()}


@pytest.fixture(scope="module")
def dynamics(networks, maskgit_networks, large_params):
    functions = {}
    for n in (networks, maskgit_networks):
        params = large_params(n, "dynamics")
        mode = n.settings.dynamics.decode_mode
        functions[mode] = jax.jit(functools.partial(n.dynamics.apply, {"params": params}))
    return functions


@pytest.fixture(scope="module")
def ids(settings):
    shape = (2, settings.num_frames, settings.tokenizer.num_tokens)
    return np.random.default_rng(5).integers(0, settings.tokenizer.num_codes // 2, shape, np.int32)


@pytest.mark.parametrize("t", INDICES)
def test_tokenizer(tokenizer, segment, ids, changed_at, assert_splits, t):
    frames = segment[0]
    assert_splits(tokenizer["latents"](frames), tokenizer["latents"](changed_at(frames, t)), t)
    assert_splits(tokenizer["decode"](ids), tokenizer["decode"](changed_at(ids, t)), t)


def test_tokens_do_not_know_the_future(tokenizer, segment, changed_at):
    frames = segment[0]
    before, after = tokenizer["encode"](frames), tokenizer["encode"](changed_at(frames, 2))
    np.testing.assert_array_equal(after[:, :2], before[:, :2])
    assert np.any(np.asarray(after[:, 2:]) != before[:, 2:])


@pytest.mark.parametrize("t", INDICES)
def test_prior_knows_frames_to_t_and_actions_before_t(behaviour, segment, changed_at, assert_splits, t):
    frames, actions, _ = segment
    before = behaviour["prior"](frames, actions)
    assert_splits(before, behaviour["prior"](changed_at(frames, t), actions), t)
    assert_splits(before, behaviour["prior"](frames, changed_at(actions, t)), t + 1)


@pytest.mark.parametrize("t", INDICES)
def test_policy_knows_frames_to_t_and_actions_before_t(behaviour, segment, settings, changed_at, assert_splits, t):
    frames, actions, z = segment
    z = z[:, 0].reshape(2, settings.behaviour.groups, -1)
    before = behaviour["policy"](frames, actions, z)
    other_frames = behaviour["policy"](changed_at(frames, t), actions, z)
    other_actions = behaviour["policy"](frames, changed_at(actions, t), z)
    for out, by_frame, by_action in zip(before, other_frames, other_actions, strict=True):
        assert_splits(out, by_frame, t)
        assert_splits(out, by_action, t + 1)
    assert_splits(before[0], behaviour["policy"](frames, actions, z[..., ::-1])[0], 0)


@pytest.mark.parametrize("t", INDICES)
def test_policy_takes_an_embedding_of_every_frame(behaviour, segment, settings, changed_at, assert_splits, t):
    frames, actions, z = segment
    groups = settings.behaviour.groups
    each = z.reshape(*z.shape[:2], groups, -1)
    for out, other in zip(
        behaviour["policy"](frames, actions, each),
        behaviour["policy"](frames, actions, changed_at(z, t).reshape(each.shape)),
        strict=True,
    ):
        assert_splits(out, other, t)
    same = np.repeat(each[:, :1], z.shape[1], axis=1)
    constant, one = (behaviour["policy"](frames, actions, given)[0] for given in (same, each[:, 0]))
    np.testing.assert_array_equal(constant, one)


@pytest.mark.parametrize("t", [0, 3])
def test_posterior_knows_the_whole_segment(behaviour, segment, changed_at, t):
    frames, actions, _ = segment
    mask = np.ones(frames.shape[:2], bool)
    before = np.asarray(behaviour["posterior"](frames, actions, mask))
    for other in (
        behaviour["posterior"](changed_at(frames, t), actions, mask),
        behaviour["posterior"](frames, changed_at(actions, t), mask),
    ):
        assert (np.asarray(other) != before).reshape(2, -1).any(1).all()


def test_posterior_attends_to_the_future(networks, settings, large_params, segment, changed_at):
    """Its feature of the first frame moves with the last frame: it pools, but is not causal either."""
    frames, actions, _ = segment
    encoder = HistoryEncoder(settings.behaviour.posterior, settings.behaviour.patch)
    params = large_params(networks, "behaviour")["posterior"]["encoder"]
    run = jax.jit(lambda frames: encoder.apply({"params": params}, frames, actions)[0])
    assert (np.asarray(run(frames))[:, 0] != run(changed_at(frames, 3))[:, 0]).any(1).all()


def test_posterior_of_padding_equals_the_shorter_segment(behaviour, segment, changed_at):
    frames, actions, _ = segment
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    got = behaviour["posterior"](frames, actions, mask)
    short = behaviour["posterior"](frames[:, :2], actions[:, :2], mask[:, :2])
    np.testing.assert_allclose(got[0], short[0], rtol=1e-4, atol=1e-4)
    other = behaviour["posterior"](changed_at(frames, 2), changed_at(actions, 3), mask)
    np.testing.assert_array_equal(other[0], got[0])
    assert np.any(np.asarray(other[1]) != got[1])


@pytest.mark.parametrize("t", INDICES)
def test_parallel_dynamics(dynamics, ids, segment, changed_at, assert_splits, t):
    _, actions, z = segment
    before = dynamics["parallel"](ids, actions, z)
    assert_splits(before, dynamics["parallel"](changed_at(ids, t), actions, z), t)
    assert_splits(before, dynamics["parallel"](ids, changed_at(actions, t), z), t)
    assert_splits(before, dynamics["parallel"](ids, actions, changed_at(z, t)), t)


@pytest.mark.parametrize("t", INDICES)
def test_maskgit_dynamics(dynamics, ids, segment, changed_at, assert_splits, t):
    """Position t sees the tokens of frame t, and the action and embedding before it."""
    _, actions, z = segment
    mask = np.zeros(ids.shape, bool)
    mask[:, 1:, ::3] = True
    before = dynamics["maskgit"](ids, actions, z, mask)
    assert_splits(before, dynamics["maskgit"](changed_at(ids, t), actions, z, mask), t)
    assert_splits(before, dynamics["maskgit"](ids, changed_at(actions, t), z, mask), t + 1)
    assert_splits(before, dynamics["maskgit"](ids, actions, changed_at(z, t), mask), t + 1)


def test_maskgit_sees_nothing_of_masked_tokens(dynamics, ids, segment):
    _, actions, z = segment
    mask = np.zeros(ids.shape, bool)
    mask[:, 2, 5:] = True
    before = np.asarray(dynamics["maskgit"](ids, actions, z, mask))
    hidden, shown = ids.copy(), ids.copy()
    hidden[:, 2, 5:] += 1
    shown[:, 2, 4] += 1
    np.testing.assert_array_equal(dynamics["maskgit"](hidden, actions, z, mask), before)
    assert np.any(np.asarray(dynamics["maskgit"](shown, actions, z, mask))[:, 2, 5:] != before[:, 2, 5:])
