"""What a stage does beside descending: codebook from data, revival of dead codes, early stopping, warnings."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

from whale_jax.base.workdir import Workdir
from whale_jax.data.contract import batch as batches
from whale_jax.data.metaworld.simulator import ACTION_SPEC
from whale_jax.evaluation.video import metrics as video
from whale_jax.jobs.configuration import make_stage, make_world
from whale_jax.models.whale.dynamics import token_cross_entropy
from whale_jax.models.whale.stages import TokenizerStage
from whale_jax.nn.masked import masked_mean
from whale_jax.training import sharding
from whale_jax.training.loop import Run, Trainer
from whale_jax.training.settings import StageSettings
from whale_jax.training.stage import Stage


@pytest.fixture(scope="module")
def world():
    return make_world(tiny.get_config())


@pytest.fixture(scope="module")
def networks(world):
    return world.model.networks


def tokenizer_stage(world, **settings) -> TokenizerStage:
    return TokenizerStage(world, ACTION_SPEC, StageSettings(**settings))


@pytest.fixture(scope="module")
def batch():
    episode = tiny.episode(3)
    empty = batches.example(2, 4, tiny.SIDE, tiny.SIDE, 4)
    frames = np.stack([episode.frames[:4], episode.frames[4:8]])
    actions = np.stack([episode.actions[:4], episode.actions[4:8]])
    return empty.replace(frames=frames, actions=actions)


def rows_from(codes, latents) -> np.ndarray:
    """Which codes are, bit for bit, one of the latents."""
    flat = {np.asarray(row).tobytes() for row in np.asarray(latents).reshape(-1, codes.shape[-1])}
    return np.array([np.asarray(row).tobytes() in flat for row in np.asarray(codes)])


def test_the_codebook_starts_from_the_encoder_s_outputs(world, networks, batch):
    params = nn.unbox(jax.jit(lambda key: networks.init("tokenizer", key))(jax.random.key(0)))
    stage = tokenizer_stage(world, init_codebook_from_data=True)

    @jax.jit
    def prepared(params):
        latents = networks.tokenizer.apply({"params": params}, batch.frames, method="latents")
        return stage.prepare(params, batch, jax.random.key(1)), latents

    after, latents = prepared(params)
    codes = after["quantizer"]["codebook"]
    assert rows_from(codes, latents).all() and not rows_from(params["quantizer"]["codebook"], latents).any()
    assert len(np.unique(codes, axis=0)) > 8
    rest = [{k: v for k, v in tree.items() if k != "quantizer"} for tree in (params, after)]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), *rest))
    assert tokenizer_stage(world).prepare(params, batch, jax.random.key(0)) is params


def test_dead_codes_become_latents_and_living_ones_stay(world):
    latents = jax.random.normal(jax.random.key(1), (2, 4, 16, 8))
    codebook = jax.random.normal(jax.random.key(2), (32, 8))
    params = {"quantizer": {"codebook": codebook}, "rest": jnp.ones(3)}
    living = np.arange(32) < 5
    usage = jnp.asarray(np.where(living, 0.2, 0.0), jnp.float32)
    stage = tokenizer_stage(world, revive_every=4, revive_below=0.1)
    after = jax.jit(stage.after_update)
    for step in range(3):
        same, extra = after(
            params, {"usage": usage}, (usage[None], latents[None]), jax.random.key(step), jnp.int32(step)
        )
        assert same["quantizer"]["codebook"].tobytes() == codebook.tobytes()
        np.testing.assert_allclose(extra["usage"], usage, rtol=1e-6)
    revived, extra = after(params, {"usage": usage}, (usage[None], latents[None]), jax.random.key(3), jnp.int32(3))
    codes = revived["quantizer"]["codebook"]
    assert codes[:5].tobytes() == codebook[:5].tobytes()
    assert rows_from(codes, latents).tolist() == (~living).tolist()
    np.testing.assert_allclose(extra["usage"], np.where(living, 0.2, 1 / 32), rtol=1e-6)
    assert revived["rest"] is not None and (revived["rest"] == 1).all()


def test_without_revival_the_codebook_is_left_alone(world):
    params = {"quantizer": {"codebook": jnp.ones((32, 8))}}
    usage = jnp.zeros(32).at[0].set(1.0)
    same, extra = tokenizer_stage(world).after_update(
        params,
        {"usage": jnp.full(32, 1 / 32)},
        (usage[None], jnp.zeros((1, 1, 1, 1, 8))),
        jax.random.key(0),
        jnp.int32(0),
    )
    assert same is params
    np.testing.assert_allclose(extra["usage"].sum(), 1.0, rtol=1e-6)


def test_fewer_than_a_tenth_of_the_codes_is_worth_a_warning(world):
    stage = tokenizer_stage(world)
    assert stage.warning({"live_codes": 0.1}) is None
    assert "3 % of the codes" in stage.warning({"live_codes": 0.03})


def test_a_collapsed_codebook_is_said_on_the_console(store, trained, tmp_path, whale):
    """One step size that makes the encoder constant: the warning must reach the user, once."""
    more = ["--until=tokenizer", "--config.stages.tokenizer.init_codebook_from_data=False"]
    more += ["--config.stages.tokenizer.revive_every=0"]
    done = whale(*tiny.train_arguments(store, tmp_path / "run", *more))
    assert done.status == 0, done.err
    assert done.err.count("the codebook has collapsed") == 1
    assert "stages.tokenizer.revive_every" in done.err


def test_masked_mean_of_nothing_is_zero():
    values = jnp.array([1.0, 2.0, 4.0])
    assert float(masked_mean(values, jnp.array([True, False, True]))) == 2.5
    assert float(masked_mean(values, jnp.zeros(3, bool))) == 0.0


@dataclasses.dataclass(frozen=True)
class Drift(Stage):
    """A stage whose held-out loss falls until its one parameter passes 3 and rises from there."""

    component = "behaviour"
    weights = {"distance": 1.0}
    seed_index = 1

    def losses(self, params, frozen, batch, key, train):
        value = params["at"].sum()
        return {"distance": -value if train else jnp.abs(value - 3.0)}, {}, None


class One:
    """A world with one parameter, and the settings that the loop's arithmetic asks for."""

    def __init__(self, settings):
        self.settings = settings

    def init(self, component, key):
        return {"at": jnp.zeros(1)}

    def earlier(self, name):
        return ()


class Endless:
    """The same batch for ever."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return batches.example(1, 4, tiny.SIDE, tiny.SIDE, 4)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]

    def report(self):
        return ""

    def allow_growth(self, nbytes):
        pass

    def close(self):
        pass


def drift_run(tmp_path, meta, **settings):
    model = make_world(tiny.get_config()).settings
    settings = StageSettings(
        steps=20, batch_size=1, max_lr=1.0, min_lr=1.0, warmup=0, log_every=1, eval_every=1, save_every=100, **settings
    )
    run = Run(
        workdir=Workdir(tmp_path),
        tensorboard=False,
        wandb=False,
        placement=sharding.alone(),
        seed=0,
        meta=meta,
        train_batches=Endless,
        valid_batches=[next(Endless())],
    )
    return Trainer(Drift(One(model), ACTION_SPEC, settings), {}, run)


@pytest.fixture(scope="module")
def meta():
    config = tiny.get_config()
    return tiny.meta_of(make_world(config), "behaviour", config=config.to_dict(), finished=False)


def test_early_stopping_waits_for_patience_and_keeps_the_best(tmp_path, meta, capsys):
    """Adam moves the parameter by 1 a step: 1, 2, 3 is best, and three worse evaluations end it at step 6."""
    trainer = drift_run(tmp_path, meta, patience=3)
    params, summary = trainer.train()
    assert summary["steps"] == 6
    np.testing.assert_allclose(params["behaviour"]["at"], 3.0, atol=1e-3)
    assert "no better for 3 evaluations" in capsys.readouterr().err
    saved = tiny.read_tree(Workdir(tmp_path).checkpoints("behaviour") / "6" / "params")
    np.testing.assert_allclose(saved["['behaviour']['at']"], 3.0, atol=1e-3)
    again, summary = drift_run(tmp_path, meta, patience=3).train()
    assert summary == {"steps": 6, "seconds": 0.0}
    np.testing.assert_array_equal(again["behaviour"]["at"], params["behaviour"]["at"])


def test_without_patience_the_last_parameters_are_the_result(tmp_path, meta):
    params, summary = drift_run(tmp_path, meta).train()
    assert summary["steps"] == 20
    np.testing.assert_allclose(params["behaviour"]["at"], 20.0, atol=1e-2)


@dataclasses.dataclass(frozen=True)
class Rising(Drift):
    """The same stage, selected by another metric, which falls for ever and starts above every loss."""

    selects_on = "slope"

    def losses(self, params, frozen, batch, key, train):
        losses, _, aux = super().losses(params, frozen, batch, key, train)
        return losses, {"slope": 100.0 - params["at"].sum()}, aux


def test_a_best_value_of_another_metric_is_not_compared_with(tmp_path, meta):
    """A run that was begun when the loss selected goes on; by that loss, three evaluations would end it at step 6."""

    class Stopped(Exception):
        pass

    def stop(params):
        raise Stopped

    trainer = drift_run(tmp_path, meta, patience=3)
    trainer.settings = dataclasses.replace(trainer.settings, save_every=1)
    trainer.run = dataclasses.replace(trainer.run, measure=stop, measure_every=3)
    with pytest.raises(Stopped):
        trainer.train()
    before = drift_run(tmp_path, meta, patience=3)
    after = Trainer(Rising(before.stage.world, ACTION_SPEC, before.settings), {}, before.run)
    params, summary = after.train()
    assert summary["steps"] == 20
    np.testing.assert_allclose(params["behaviour"]["at"], 20.0, atol=1e-2)


def test_behaviour_is_selected_by_what_the_prior_alone_achieves(world, networks, batch):
    """By hand: the policy sees at every frame the prior's most likely embedding there. Padding does not count."""
    config, rng = tiny.get_config(), np.random.default_rng(0)
    stage = make_stage(config, "behaviour", ACTION_SPEC)
    shapes = nn.unbox(world.shapes("behaviour"))
    params = jax.tree.map(lambda s: jnp.asarray(0.4 * rng.normal(size=s.shape), jnp.float32), shapes)
    masks = np.array([[True] * 4, [True, True, True, False]])
    padded = batch.replace(frame_mask=masks, action_mask=masks & np.array([1, 1, 1, 0], bool))
    _, (metrics, _) = jax.jit(stage.loss, static_argnums=4)(params, {}, padded, jax.random.key(0), False)
    actions = ACTION_SPEC.normalise(padded.actions)
    log_p = np.asarray(networks.infer_behaviour({"behaviour": params}, padded.frames, actions))
    z = jax.nn.one_hot(log_p.argmax(-1), log_p.shape[-1])
    mean, log_std = networks.policy.apply({"params": params["policy"]}, padded.frames, actions, z)
    nll = -scipy.stats.norm.logpdf(actions, mean, np.exp(log_std)).sum(-1)
    assert float(metrics["prior_nll"]) == pytest.approx(nll[padded.action_mask].mean(), rel=1e-4)
    assert abs(float(metrics["nll"]) - float(metrics["prior_nll"])) > 1e-3
    entropy = -(np.exp(log_p) * log_p).sum((-2, -1))
    assert float(metrics["prior_entropy"]) == pytest.approx((entropy[0, 3] + entropy[1, 2]) / 2, rel=1e-4)
    assert float(metrics["prior_entropy_max"]) == pytest.approx(4 * np.log(4))
    trained = jax.eval_shape(lambda: stage.loss(params, {}, padded, jax.random.key(0), True))[1][0]
    assert set(metrics) - set(trained) == {"prior_nll", "prior_entropy", "prior_entropy_max"}


def test_each_stage_is_named_after_what_it_trains():
    stages = make_world(tiny.get_config()).stages
    assert list(stages) == list(tiny.STAGES) and all(stage.component == name for name, stage in stages.items())
    assert stages["behaviour"].selects_on == "prior_nll"


def test_a_stage_draws_the_numbers_that_it_always_drew_and_holds_what_was_trained_before(world):
    """Another number, and a run that was begun before would not resume bit for bit."""
    numbers = {name: stage.seed_index for name, stage in world.stages.items()}
    assert numbers == {"tokenizer": 0, "behaviour": 1, "dynamics": 2, "reward": 3, "ensemble": 4}
    for number, name in enumerate(world.stages):
        assert world.earlier(name) == tiny.STAGES[:number]
        assert set(make_stage(tiny.get_config(), name).frozen) <= set(world.earlier(name))


def test_the_dynamics_learn_from_a_part_of_what_behaviour_is_inferred_from():
    config = tiny.get_config()
    config.model.behaviour.num_frames = 7
    world = make_world(config)
    stages = {name: make_stage(config, name) for name in ("tokenizer", "behaviour", "dynamics")}
    assert {name: stage.num_frames for name, stage in stages.items()} == {"tokenizer": 4, "behaviour": 7, "dynamics": 7}
    params = {name: world.fresh(name, jax.random.key(i)) for i, name in enumerate(stages)}
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    episode, count = tiny.episode(3), 6  # the last of seven frames is padding
    mask = np.arange(7)[None] < count
    batch = batches.example(1, 7, tiny.SIDE, tiny.SIDE, 4).replace(
        frames=episode.frames[None, :7],
        actions=episode.actions[None, :7],
        frame_mask=mask,
        action_mask=mask & (np.arange(7) < count - 1),
    )
    losses = jax.jit(stages["dynamics"].losses, static_argnums=4)
    got = losses(params["dynamics"], params, batch, jax.random.key(0), False)[0]["cross_entropy"]
    networks, actions = world.model.networks, ACTION_SPEC.normalise(batch.actions)
    z = jnp.argmax(networks.infer_behaviour(params, batch.frames, actions), -1)
    z = jax.nn.one_hot(z, 4).reshape(1, 7, -1)
    ids, part = networks.encode(params, batch.frames[:, 2:6]), slice(2, 6)
    logits, targets, _ = networks.predict_segment(params, ids, actions[:, part], z[:, part])
    np.testing.assert_allclose(got, token_cross_entropy(logits, targets).mean(), rtol=1e-5)
    drawn = {
        float(losses(params["dynamics"], params, batch, jax.random.key(i), True)[0]["cross_entropy"]) for i in range(12)
    }
    assert np.isfinite(list(drawn)).all() and len(drawn) > 2


def test_the_perceptual_term_is_the_lpips_of_real_frames_and_costs_nothing_without_a_weight():
    config = tiny.get_config()
    config.model.image_size, config.model.tokenizer.patch = 32, 8
    world = make_world(config)
    plain = {"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25}
    stage, without = (tokenizer_stage(world, weights=plain | more) for more in ({"perceptual": 0.5}, {}))
    params = world.fresh("tokenizer", jax.random.key(0))
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3), np.uint8)
    frames[:, 2:] = 0  # padding
    mask = np.arange(4)[None] < np.full((2, 1), 2)
    batch = batches.example(2, 4, 32, 32, 4).replace(frames=frames, frame_mask=mask)

    def losses(stage, params, seed):
        return stage.losses(params, {}, batch, jax.random.key(seed), True)

    drawn = world.model.networks.tokenizer.apply({"params": params}, frames, mask).frames
    real, padding = np.split(video.lpips(frames, np.asarray(drawn)), 2, axis=1)
    assert abs(real.mean() - padding.mean()) > 0.2 * real.mean()
    found = jax.jit(jax.vmap(lambda seed: losses(stage, params, seed)[0]["perceptual"]))(np.arange(32))
    assert real.min() - 1e-4 < found.min() and found.max() < real.max() + 1e-4
    np.testing.assert_allclose(found.mean(), real.mean(), rtol=0.02)
    gradient = jax.jit(jax.grad(lambda params: losses(stage, params, 0)[0]["perceptual"]))(params)
    assert np.abs(gradient["to_pixels"]["kernel"]).max() > 0
    assert without.loss_weights["perceptual"] == 0 and "lpips" not in losses(without, params, 0)[1]
    assert "conv_general" not in str(jax.make_jaxpr(lambda params: losses(without, params, 0)[0])(params))
