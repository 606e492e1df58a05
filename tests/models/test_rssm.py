"""DreamerV3's world model: its size, its recurrence and losses against NumPy, and what each time step knows."""

import dataclasses
import fnmatch
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import flat
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.contract.batch import Batch
from whale_jax.models.base import parameters_in
from whale_jax.models.rssm.losses import balanced_kl
from whale_jax.models.rssm.model import Rssm
from whale_jax.models.rssm.networks import Doubling, State
from whale_jax.models.rssm.settings import RssmSettings
from whale_jax.models.rssm.stages import RssmStage
from whale_jax.models.rssm.states import draw
from whale_jax.models.world import World
from whale_jax.training.settings import StageSettings

SIZES = {"deter": 12, "hidden": 10, "stoch": 3, "classes": 5, "depth": 4, "head_units": 8, "bins": 21}
MODEL = {"name": "rssm", "num_frames": 5, "image_size": 16, "action_dim": 2, "rssm": SIZES}
SPEC = ActionSpec(("x", "y"), ("delta",) * 2, ("",) * 2, (-2.0, -2.0), (2.0, 2.0), 1.0)
B, T, A = 3, 5, 2


@pytest.fixture(scope="module")
def model():
    return Rssm.from_config(MODEL)


@pytest.fixture(scope="module")
def stage(model):
    return RssmStage(World(model), SPEC, StageSettings())


@pytest.fixture(scope="module")
def params(model):
    """Parameters with noise so large that every input matters."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(functools.partial(model.init, "rssm"), jax.random.key(0))
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), nn.unbox(shapes))


@pytest.fixture(scope="module")
def fresh(model):
    """Parameters as they are drawn."""
    return nn.unbox(jax.jit(functools.partial(model.init, "rssm"))(jax.random.key(0)))


@pytest.fixture(scope="module")
def batch():
    """Actions are in the robot's units, from -2 to 2."""
    rng = np.random.default_rng(1)
    return Batch(
        frames=rng.integers(0, 256, (B, T, 16, 16, 3), np.uint8),
        actions=rng.uniform(-2, 2, (B, T, A)).astype(np.float32),
        rewards=rng.normal(0, 3, (B, T)).astype(np.float32),
        frame_mask=np.ones((B, T), bool),
        action_mask=np.ones((B, T), bool),
        episode=np.arange(B, dtype=np.int32),
        start=np.zeros(B, np.int32),
    )


@pytest.fixture(scope="module")
def observe(model, params):
    return functools.partial(jax.jit(model.networks.observe), params)


@pytest.fixture(scope="module")
def evaluate(stage):
    """(params, batch) to the loss and its metrics, with modes in place of samples."""
    run = jax.jit(lambda params, batch: stage.loss(params, {}, batch, jax.random.key(0), train=False))
    return lambda params, batch: run(params, batch)[1][0]


@pytest.fixture(scope="module")
def step(model, params):
    run = functools.partial(jax.jit(model.step, static_argnums=4), {"rssm": params})
    return lambda carry, actions, key=0, temperature=0.0: run(carry, actions, jax.random.key(key), temperature)


@pytest.fixture(scope="module")
def start(model, params):
    return functools.partial(jax.jit(model.start), {"rssm": params})


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def normed(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-3) * p["scale"] + p["bias"]


def probabilities(logits, groups=3, classes=5, unimix=0.01):
    e = np.exp(logits.reshape(-1, groups, classes))
    return (1 - unimix) * e / e.sum(-1, keepdims=True) + unimix / classes


def hot(probs):
    return np.eye(probs.shape[-1])[probs.argmax(-1)]


def numpy_advance(p, deter, stoch, action):
    """The recurrent cell from concatenated inputs and joined kernels."""
    kernel = np.concatenate([p["stoch_in"]["kernel"], p["action_in"]["kernel"]])
    x = silu(normed(np.concatenate([stoch.reshape(len(stoch), -1), action], -1) @ kernel, p["norm_in"]))
    r, c, u = np.split(normed(np.concatenate([x, deter], -1) @ p["gates"]["kernel"], p["norm_gates"]), 3, -1)
    u = sigmoid(u - 1)
    return u * np.tanh(sigmoid(r) * c) + (1 - u) * deter


def numpy_prior(p, deter):
    x = silu(normed(deter @ p["prior_in"]["kernel"], p["norm_prior"]))
    return probabilities(x @ p["prior_out"]["kernel"] + p["prior_out"]["bias"])


def numpy_posterior(p, deter, embedded):
    kernel = np.concatenate([p["posterior_in"]["kernel"], p["frame_in"]["kernel"]])
    x = silu(normed(np.concatenate([deter, embedded], -1) @ kernel, p["norm_posterior"]))
    return probabilities(x @ p["posterior_out"]["kernel"] + p["posterior_out"]["bias"])


def core(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params["core"])


def sizes_of(image_size):
    shapes = jax.eval_shape(functools.partial(Rssm(RssmSettings(8, image_size, 4)).init, "rssm"), jax.random.key(0))
    return {name: parameters_in(part) for name, part in shapes.items()}


def test_published_sizes():
    sizes = {"encoder": 2_757_504, "core": 19_942_400, "decoder": 19_541_891, "reward": 1_443_583}
    assert sizes_of(64) == sizes | {"continue": 1_313_281} and sum(sizes_of(64).values()) == 44_998_659
    # Four more convolutions of the largest width, with their normalisations.
    assert sum(sizes_of(256).values()) == 44_998_659 + 4 * (512 * 512 * 16 + 2 * 512) == 61_779_971


@pytest.mark.parametrize(
    ("group", "key", "value", "words"),
    [
        ("rssm", "unimix", 1.0, "model.rssm.unimix is a share below 1"),
        ("rssm", "limit", 0.0, "model.rssm.limit is a number above 0"),
        ("rssm", "classes", 1, "model.rssm.classes is at least 2"),
        ("rssm", "deterr", 8, "model.rssm.deter"),
        (None, "image_size", 48, "model.image_size of 8, 16, 32"),
        (None, "num_frames", 1, "model.num_frames is at least 2"),
    ],
)
def test_wrong_keys_are_refused_by_name(group, key, value, words):
    with pytest.raises(WhaleError, match=words):
        Rssm.from_config(MODEL | ({group: SIZES | {key: value}} if group else {key: value}))


def test_config_and_settings(model):
    s = model.settings
    assert hash(model) == hash(Rssm.from_config(MODEL)) and RssmSettings.from_dict(s.to_dict()) == s
    assert (s.frame_size, s.window, s.block, s.num_frames, s.action_dim) == ((16, 16), None, 1, 5, 2)
    assert Rssm.Keys().num_frames == 8 and model.components == ("rssm",)
    assert model.abilities == {"reconstruct", "own_reward", "entropy"}


def test_initial_values():
    init = functools.partial(Rssm(RssmSettings(8, 16, 4, deter=96, hidden=64)).init, "rssm")
    boxed = jax.jit(init)(jax.random.key(0))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)
    values = flat(nn.unbox(boxed))
    normal = {"core.stoch_in": 1028, "core.action_in": 1028, "core.prior_in": 96}
    normal |= {"core.posterior_in": 96 + 2048, "core.frame_in": 96 + 2048}
    stds = {name: np.sqrt(2 / (inputs + 64)) for name, inputs in normal.items()}
    stds |= dict.fromkeys(("encoder.conv_1", "decoder.conv_0"), np.sqrt(2 / (16 * (64 + 128))))
    for name, std in stds.items():
        kernel = values[f"{name}.kernel"]
        assert np.std(kernel) == pytest.approx(std, rel=0.12) and np.abs(kernel).max() <= 2 * std / 0.8796 + 1e-6
    for name, inputs, outputs in (("core.prior_out", 64, 1024), ("decoder.dense", 1024 + 96, 2048)):
        assert np.abs(values[f"{name}.kernel"]).max() == pytest.approx(np.sqrt(6 / (inputs + outputs)), rel=0.01)
    zeros = [name for name in values if name.endswith("bias")] + ["core.initial", "reward.out.kernel"]
    assert not any(np.any(values[name]) for name in zeros)
    assert all(np.all(value == 1) for name, value in values.items() if name.endswith("scale"))
    assert fnmatch.filter(values, RssmStage.action_inputs[0]) == ["core.action_in.kernel"]


def test_doubling_is_a_transposed_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    layer = Doubling(6, use_bias=True)
    params = nn.unbox(layer.init(jax.random.key(1), x))
    params["params"]["bias"] = jnp.arange(6.0)
    kernel = params["params"]["kernel"][::-1, ::-1]
    dims = ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=dims) + jnp.arange(6.0)
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_frames_are_centred_at_half(model, params, fresh):
    """Without weights, the decoder draws 0.5 everywhere. The encoder sees nothing in a frame of 0.5."""
    apply, silent = model.networks.apply, jax.tree.map(jnp.zeros_like, params)
    assert np.all(apply(silent, "decoder", jnp.ones((2, 3 * 5 + 12))) == 0.5)
    assert not np.any(apply(fresh, "encoder", jnp.full((1, 16, 16, 3), 0.5)))
    assert np.any(apply(fresh, "encoder", jnp.full((1, 16, 16, 3), 0.6)))


def test_recurrent_cell_and_distributions(model, params):
    n, p, rng = model.networks, core(params), np.random.default_rng(2)
    deter, action, embedded = (rng.normal(size=(4, size)) for size in (12, A, 4 * 4 * 8))
    stoch = np.eye(5)[rng.integers(0, 5, (4, 3))]
    state = State(jnp.float32(deter), jnp.float32(stoch))
    after = numpy_advance(p, deter, stoch, action)
    np.testing.assert_allclose(n.apply(params, "core", state, action, method="advance"), after, atol=1e-5)
    prior = np.exp(n.apply(params, "core", jnp.float32(after), method="prior"))
    np.testing.assert_allclose(prior, numpy_prior(p, after), atol=1e-5)
    seen = n.apply(params, "core", jnp.float32(embedded), method="see")
    posterior = np.exp(n.apply(params, "core", jnp.float32(after), seen, method="posterior"))
    np.testing.assert_allclose(posterior, numpy_posterior(p, after, embedded), atol=1e-5)


def test_no_class_has_less_than_its_share_of_the_uniform_distribution(model, params):
    certain = jax.tree.map(lambda x: 1e3 * x, params)
    deter, seen = jax.random.normal(jax.random.key(0), (4, 12)), jnp.zeros((4, 10))
    for log_probs in (
        model.networks.apply(certain, "core", deter, method="prior"),
        model.networks.apply(certain, "core", deter, seen, method="posterior"),
    ):
        probs = np.sort(np.exp(log_probs), -1)
        np.testing.assert_allclose(probs, np.broadcast_to([0.002] * 4 + [0.992], probs.shape), rtol=1e-3)


def test_first_step_starts_from_the_learnt_state_without_an_action(model, params, observe, batch):
    p = core(params)
    deter = np.tanh(np.broadcast_to(p["initial"], (B, 12)))
    deter = numpy_advance(p, deter, hot(numpy_prior(p, deter)), np.zeros((B, A)))
    embedded = np.float64(model.networks.apply(params, "encoder", batch.frames[:, 0]))
    posterior = numpy_posterior(p, deter, embedded)
    seen = observe(batch.frames, SPEC.normalise(batch.actions))
    np.testing.assert_allclose(seen.states.deter[:, 0], deter, atol=1e-5)
    np.testing.assert_allclose(np.exp(seen.posterior[:, 0]), posterior, atol=1e-5)
    np.testing.assert_allclose(np.exp(seen.prior[:, 0]), numpy_prior(p, deter), atol=1e-5)
    np.testing.assert_array_equal(seen.states.stoch[:, 0], hot(posterior))


def test_actions_lead_to_the_next_frame(params, observe, batch):
    """The second state follows from the first one by a_0."""
    p, actions = core(params), SPEC.normalise(batch.actions)
    states = observe(batch.frames, actions).states
    first = (np.float64(x[:, 0]) for x in (states.deter, states.stoch))
    np.testing.assert_allclose(states.deter[:, 1], numpy_advance(p, *first, actions[:, 0]), atol=1e-5)


@pytest.mark.parametrize("t", range(T))
def test_a_state_knows_frames_to_t_and_actions_before_t(observe, batch, t):
    actions = SPEC.normalise(batch.actions)
    before = observe(batch.frames, actions, jax.random.key(0))
    other_action = observe(batch.frames, np.where(np.arange(T)[:, None] == t, -actions, actions), jax.random.key(0))
    frames = np.where(np.arange(T)[:, None, None, None] == t, 255 - batch.frames, batch.frames)
    other_frame = observe(frames, actions, jax.random.key(0))

    def differs(a, b):
        return (np.asarray(a) != b).reshape(B, T, -1).any((0, 2))

    assert list(differs(before.states.features, other_action.states.features)) == [i > t for i in range(T)]
    assert list(differs(before.prior, other_action.prior)) == [i > t for i in range(T)]
    assert list(differs(before.posterior, other_frame.posterior)) == [i >= t for i in range(T)]
    assert not differs(before.prior, other_frame.prior)[: t + 1].any()
    assert not differs(before.states.deter, other_frame.states.deter)[: t + 1].any()


def test_balanced_kl_against_numpy():
    rng = np.random.default_rng(3)
    q, p = (probabilities(scale * rng.normal(size=(6, 15))) for scale in (2.0, 0.1))
    q[:2] = 0.9 * p[:2] + 0.1 * q[:2]  # below a nat in sum
    kl = (q * np.log(q / p)).sum((-2, -1))
    assert kl[:2].max() < 1 < kl[2:].min() and (q * np.log(q / p)).sum(-1)[2:].min() < 1
    for value in balanced_kl(jnp.log(q), jnp.log(p), 1.0):
        np.testing.assert_allclose(value, np.maximum(kl, 1.0), rtol=1e-4)


def test_balanced_kl_moves_one_side_each_and_nothing_below_the_free_nats():
    rng = np.random.default_rng(4)
    q, p = (jnp.log(probabilities(2 * rng.normal(size=(4, 15)))) for _ in range(2))

    def gradients(which, free):
        return jax.grad(lambda q, p: balanced_kl(q, p, free)[which].sum(), argnums=(0, 1))(q, p)

    assert [bool(np.any(g)) for g in gradients(0, 0.1)] == [False, True]
    assert [bool(np.any(g)) for g in gradients(1, 0.1)] == [True, False]
    assert not any(np.any(g) for which in (0, 1) for g in gradients(which, 1e3))


def test_samples_follow_the_probabilities_and_the_temperature():
    probs = np.float32([[[0.7, 0.2, 0.1]]])
    log_probs = np.broadcast_to(np.log(probs), (20_000, 1, 3))
    for temperature in (0.5, 1.0):
        tempered = probs ** (1 / temperature)
        mean = np.mean(draw(jax.random.key(0), log_probs, temperature), axis=0)
        np.testing.assert_allclose(mean, (tempered / tempered.sum())[0], atol=0.015)
    np.testing.assert_array_equal(draw(jax.random.key(0), log_probs[:1], 0.0), [[[1, 0, 0]]])


def test_training_samples_and_evaluation_takes_modes(observe, batch):
    actions = SPEC.normalise(batch.actions)
    sampled = [observe(batch.frames, actions, jax.random.key(k)).states.stoch for k in (0, 1)]
    taken = observe(batch.frames, actions)
    assert np.any(sampled[0] != sampled[1])
    for stoch in (*sampled, taken.states.stoch):
        np.testing.assert_allclose(np.sort(stoch, -1), np.broadcast_to([0, 0, 0, 0, 1], stoch.shape), atol=1e-6)
    np.testing.assert_array_equal(taken.states.stoch, hot(np.asarray(taken.posterior)))


def test_gradients_pass_through_samples(model, params, batch):
    def after(bias, key):
        out = params["core"]["posterior_out"] | {"bias": bias}
        changed = params | {"core": params["core"] | {"posterior_out": out}}
        actions = SPEC.normalise(batch.actions)
        return model.networks.observe(changed, batch.frames, actions, key).states.deter[:, 1].sum()

    gradient, bias = jax.jit(jax.grad(after)), params["core"]["posterior_out"]["bias"]
    assert np.any(gradient(bias, jax.random.key(0))) and not np.any(gradient(bias, None))


def two_hot_error(logits, reward, limit=20.0):
    """Cross-entropy of one reward's logits (K,) against its two nearest bins."""
    centres = np.linspace(-limit, limit, len(logits))
    centres = np.sign(centres) * np.expm1(abs(centres))
    upper = np.searchsorted(centres, reward)
    share = (reward - centres[upper - 1]) / (centres[upper] - centres[upper - 1])
    log_probs = logits - np.log(np.exp(logits).sum())
    return -(share * log_probs[upper] + (1 - share) * log_probs[upper - 1])


def test_losses_against_numpy(model, stage, params, batch, observe, evaluate):
    frame_mask = np.arange(T) < np.array([[5], [3], [4]])
    batch = dataclasses.replace(batch, frame_mask=frame_mask, action_mask=np.roll(frame_mask, -1, 1) & frame_mask)
    batch.action_mask[:, -1] = batch.action_mask[0, 1] = False
    losses, metrics, _ = jax.jit(functools.partial(stage.losses, train=False))(params, {}, batch, jax.random.key(0))
    seen = observe(batch.frames, SPEC.normalise(batch.actions))
    q, p = (np.exp(np.float64(x)) for x in (seen.posterior, seen.prior))
    read = {
        name: np.float64(model.networks.over_time(params, name, seen.states.features))
        for name in ("decoder", "reward", "continue")
    }
    places = [(b, t) for b in range(B) for t in range(T) if frame_mask[b, t]]
    rewarded = [(b, t) for b, t in places if t and batch.action_mask[b, t - 1]]
    frames, mean = batch.frames / 255, lambda values: float(np.mean(list(values)))
    kl = {place: (q[place] * np.log(q[place] / p[place])).sum() for place in places}
    expected = {
        "image": mean(((read["decoder"][place] - frames[place]) ** 2).sum() for place in places),
        # The state after t has the reward of the action before.
        "reward": mean(two_hot_error(read["reward"][b, t], batch.rewards[b, t - 1]) for b, t in rewarded),
        "continue": mean(-np.log(sigmoid(read["continue"][place][0])) for place in places),
        "dynamics": mean(max(1.0, kl[place]) for place in places),
        "representation": mean(max(1.0, kl[place]) for place in places),
    }
    assert set(losses) == set(stage.weights) == set(expected)
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(value, rel=2e-4), name
    mse = mean(((read["decoder"][place].clip(0, 1) - frames[place]) ** 2).mean() for place in places)
    assert float(metrics["image_mse"]) == pytest.approx(mse, rel=1e-4)
    assert float(metrics["psnr"]) == pytest.approx(-10 * np.log10(mse), abs=1e-3)
    assert float(metrics["kl"]) == pytest.approx(mean(kl.values()), rel=2e-4)
    entropy = mean(-(p[place] * np.log(p[place])).sum(-1).mean() for place in places)
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=2e-4)
    total = sum(stage.weights[name] * value for name, value in expected.items())
    assert float(evaluate(params, batch)["loss"]) == pytest.approx(total, rel=2e-4)


def test_padding_does_not_matter(params, batch, evaluate):
    mask = np.broadcast_to(np.arange(T) < 3, (B, T))
    batch = dataclasses.replace(batch, frame_mask=mask, action_mask=np.broadcast_to(np.arange(T) < 2, (B, T)))
    other = dataclasses.replace(
        batch,
        frames=np.where(mask[..., None, None, None], batch.frames, 255 - batch.frames),
        actions=np.where(batch.action_mask[..., None], batch.actions, 1.5),
        rewards=np.where(batch.action_mask, batch.rewards, 1e3).astype(np.float32),
    )
    before, after = evaluate(params, batch), evaluate(params, other)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    shorter = jax.tree.map(lambda x: x[:, :3] if x.ndim > 1 else x, batch)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), evaluate(params, shorter), before)


def test_step_continues_where_start_ends(model, params, start, step, batch):
    actions = SPEC.normalise(batch.actions)
    carry = start(batch.frames[:, :3], actions[:, :2])
    longer = start(batch.frames[:, :4], actions[:, :3])
    after, out = step(carry, actions[:, 2:3])
    np.testing.assert_allclose(after.deter, longer.deter, atol=1e-6)
    assert (out.frames.shape, out.frames.dtype) == ((B, 1, 16, 16, 3), np.uint8)
    p, n = core(params), model.networks
    deter = numpy_advance(p, *(np.float64(x) for x in (carry.deter, carry.stoch)), actions[:, 2])
    prior = numpy_prior(p, deter)
    np.testing.assert_array_equal(after.stoch, hot(prior))
    np.testing.assert_allclose(out.entropy[:, 0], -(prior * np.log(prior)).sum(-1).mean(-1), rtol=1e-4)
    drawn = np.asarray(n.apply(params, "decoder", after.features))
    assert drawn.min() < 0 and drawn.max() > 1
    np.testing.assert_allclose(out.frames[:, 0], drawn.clip(0, 1) * 255, atol=0.51)


def test_modes_take_no_key_and_samples_do(start, step, batch):
    actions = SPEC.normalise(batch.actions)
    carry = start(batch.frames[:, :2], actions[:, :1])
    same = [step(carry, actions[:, 1:2], key) for key in (0, 1)]
    jax.tree.map(np.testing.assert_array_equal, *same)
    sampled = [step(carry, actions[:, 1:2], key, 1.0) for key in range(4)]
    assert any(np.any(state.stoch != sampled[0][0].stoch) for state, _ in sampled)
    for state, out in sampled:
        np.testing.assert_array_equal(state.deter, same[0][0].deter)
        np.testing.assert_array_equal(out.entropy, same[0][1].entropy)


def test_rows_do_not_see_each_other(start, step, batch):
    actions = SPEC.normalise(batch.actions)
    frames, moved = batch.frames.copy(), actions.copy()
    frames[1], moved[1] = 255 - frames[1], -moved[1]
    outcomes = [step(start(f[:, :2], a[:, :1]), a[:, 1:2]) for f, a in ((batch.frames, actions), (frames, moved))]
    for a, b in zip(*(jax.tree.leaves(outcome) for outcome in outcomes), strict=True):
        np.testing.assert_array_equal(a[::2], b[::2])
    assert np.any(outcomes[0][1].frames[1] != outcomes[1][1].frames[1])


def test_own_reward_is_the_mean_of_the_bins_that_were_a_target(model, params, fresh, start, batch):
    seen = slice(9, 14)
    out = {name: np.zeros_like(leaf) for name, leaf in params["reward"]["out"].items()}
    for name, leaf in params["reward"]["out"].items():
        out[name][..., seen] = leaf[..., seen]
    params = params | {"reward": params["reward"] | {"out": out}}
    carry = start(batch.frames[:, :2], SPEC.normalise(batch.actions)[:, :1])
    logits = np.float64(model.networks.apply(params, "reward", carry.features))[:, seen]
    probs, centres = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), np.linspace(-20, 20, 21)[seen]
    mean = (probs * np.sign(centres) * np.expm1(abs(centres))).sum(-1)
    rewards = model.own_reward({"rssm": params}, carry)
    np.testing.assert_allclose(rewards[:, 0], mean, rtol=1e-3)
    np.testing.assert_array_equal(model.own_reward({"rssm": fresh}, carry), np.zeros((B, 1)))


def test_reconstruction_takes_each_frame_as_a_first_one(model, params, start, batch):
    run = jax.jit(model.reconstruct)
    drawn = run({"rssm": params}, batch.frames)
    assert (drawn.shape, drawn.dtype) == (batch.frames.shape, np.float32)
    assert drawn.min() == 0 and drawn.max() == 1
    carry = start(batch.frames[:, 3:4], np.zeros((B, 0, A), np.float32))
    alone = np.asarray(model.networks.apply(params, "decoder", carry.features)).clip(0, 1)
    np.testing.assert_allclose(drawn[:, 3], alone, atol=1e-5)
    np.testing.assert_allclose(run({"rssm": params}, batch.frames / np.float32(255)), drawn, atol=1e-4)


def test_film_shows_reality_reconstruction_and_prediction(stage, params, batch):
    film = np.asarray(jax.jit(stage.film)(params, {}, batch))
    assert film.shape == (T, 16, 3 * 16, 3) and film.min() >= 0 and film.max() <= 1
    np.testing.assert_allclose(film[:, :, :16], batch.frames[0] / 255, atol=1e-6)
    assert np.any(film[:, :, 16:32] != film[:, :, 32:])


def test_training_lowers_the_loss_and_moves_every_parameter(stage, fresh, params):
    """Frames show where the actions have moved a square, and rewards say so too."""
    rng = np.random.default_rng(5)
    actions = rng.uniform(-2, 2, (8, T, A)).astype(np.float32)
    place = 6 + np.cumsum(np.pad(actions, ((0, 0), (1, 0), (0, 0)))[:, :-1], 1).round().astype(int).clip(-6, 6)
    frames = np.full((8, T, 16, 16, 3), 30, np.uint8)
    for b, t in np.ndindex(8, T):
        row, column = place[b, t]
        frames[b, t, row : row + 4, column : column + 4] = 220
    mask = np.ones((8, T), bool)
    rewards, index = place.sum(-1).astype(np.float32), np.zeros(8, np.int32)
    batch = Batch(frames, actions, rewards, mask, mask, index, index)
    optimiser = optax.adam(3e-3)

    @jax.jit
    def update(params, state, key):
        grad = jax.value_and_grad(lambda p: stage.loss(p, {}, batch, key, True), has_aux=True)
        (_, (metrics, _)), gradient = grad(params)
        changes, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, changes), state, metrics, gradient

    trained, state, history = fresh, optimiser.init(fresh), []
    for i in range(30):
        trained, state, metrics, _ = update(trained, state, jax.random.key(i))
        history.append(metrics)
    assert float(history[-1]["loss"]) < 0.4 * float(history[0]["loss"])
    assert float(history[-1]["psnr"]) > float(history[0]["psnr"]) + 5
    # A fresh prior has no gradient, because it differs from the posterior by less than the free nats.
    gradient = update(params, optimiser.init(params), jax.random.key(0))[3]
    assert all(np.any(g) for g in jax.tree.leaves(gradient))
