"""The learnt error: its fit, its parity along a rollout and at once, and what the trust suite makes of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.data.store.store import open_store
from whale_jax.evaluation.clips import read_clips
from whale_jax.evaluation.evaluate import evaluate
from whale_jax.evaluation.suite import Job
from whale_jax.evaluation.trust.learning import examples, with_learnt_error
from whale_jax.evaluation.trust.suite import TrustSettings
from whale_jax.evaluation.uncertainty.estimates import choose
from whale_jax.imagination.trust import STEPS, read_trust
from whale_jax.imagination.uncertainty import learnt_error
from whale_jax.imagination.world import LoadedModel
from whale_jax.nn import lpips

SIDE, CONTEXT, HORIZON = 32, 4, 4
SETTINGS = TrustSettings(
    horizon=HORIZON,
    episodes=9,
    batch_size=9,
    seed=0,
    splits=20,
    estimates=("entropy", "learnt_error"),
    tolerances=(0.4,),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tiny.write_store(tmp_path_factory.mktemp("store"), steps=9, side=SIDE, each=9))


@pytest.fixture(scope="module")
def written(store, tmp_path_factory):
    """The job of a run, its metrics, and a model that finds what the suite wrote there, as the job's own does."""
    run = tmp_path_factory.mktemp("run")
    model = dataclasses.replace(tiny.random_world(SIDE), source=run / "checkpoints" / "reward" / "1")
    job = Job(model, store.held_out(), run, settings=SETTINGS, training=store.select(split="train"))
    metrics = evaluate(job, {"trust": SETTINGS})
    assert model.learnt_error is not None, "as a suite after it needs"
    return job, metrics, dataclasses.replace(model)


def test_a_rollout_step_by_step_is_read_as_it_is_at_once():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, 5, SIDE, SIDE, 3), np.uint8)
    actions, entropy = rng.uniform(-1, 1, (2, 5, 4)).astype(np.float32), rng.uniform(0, 3, (2, 5)).astype(np.float32)
    _, at_once = learnt_error.inputs(lpips.weights(), learnt_error.begin(2), frames, actions, jnp.asarray(entropy))
    past, parts = learnt_error.begin(2), []
    for steps in (slice(0, 1), slice(1, 3), slice(3, 5)):  # a block of one step, then of two
        past, found = learnt_error.inputs(
            lpips.weights(), past, frames[:, steps], actions[:, steps], jnp.asarray(entropy[:, steps])
        )
        parts.append(found)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), at_once, rtol=1e-4, atol=1e-5)
    largest, mean = np.maximum.accumulate(entropy, axis=1), entropy.cumsum(1) / np.arange(1, 6)
    known = np.log(np.stack([entropy, largest, mean, np.broadcast_to(np.arange(1.0, 6), entropy.shape)], -1) + 1e-6)
    np.testing.assert_allclose(at_once[..., :4], known, rtol=1e-4, atol=1e-5)


def test_the_fit_finds_what_is_there_and_nothing_where_nothing_is():
    rng = np.random.default_rng(1)
    seen = rng.normal(3.0, 2.0, (4000, 20))
    errors = np.exp(0.3 * seen[:, 0] - 0.1 * seen[:, 1] - 3.0 + 0.05 * rng.normal(size=4000))
    new = rng.normal(3.0, 2.0, (500, 20))
    told = np.asarray(learnt_error.predicted(learnt_error.fit(seen, errors), jnp.asarray(new, jnp.float32)))
    assert np.corrcoef(np.log(told), 0.3 * new[:, 0] - 0.1 * new[:, 1])[0, 1] > 0.99
    noise = learnt_error.fit(seen, rng.permutation(errors))
    told = np.asarray(learnt_error.predicted(noise, jnp.asarray(new, jnp.float32)))
    assert np.log(told).std() < 0.1 * np.log(errors).std()


def test_what_was_fitted_reads_training_episodes_and_is_written(written, store):
    job, metrics, model = written
    fresh = dataclasses.replace(model)
    assert fresh.learnt_error is not None and (job.output / "learnt_error.npz").exists()
    assert any("fitted to 144 imagined steps of training episodes" in note for note in metrics["trust"]["notes"])
    seen, errors = zip(
        *(examples(fresh, group, CONTEXT, 9) for group in read_clips(job.training, SETTINGS)), strict=True
    )
    again = learnt_error.fit(np.concatenate([x.reshape(-1, x.shape[-1]) for x in seen]), np.concatenate(errors).ravel())
    np.testing.assert_allclose(fresh.learnt_error["weights"], again["weights"], rtol=1e-3, atol=1e-5)
    told = np.concatenate([np.asarray(learnt_error.predicted(again, x)).ravel() for x in seen])
    assert np.corrcoef(told, np.concatenate(errors).ravel())[0, 1] > 0.3


def test_imagined_futures_have_the_error_that_was_fitted_and_calibrated(written):
    job, metrics, model = written
    group = read_clips(job.store, SETTINGS)[0]
    future = model.imagine(group.frames[:, :CONTEXT], group.actions, uncertainty="learnt_error", task=group.task)
    seen, _ = examples(model, group, CONTEXT, 9)
    np.testing.assert_allclose(future.uncertainty, learnt_error.predicted(model.learnt_error, seen), rtol=1e-3)
    np.testing.assert_allclose(
        read_trust(job.output / "trust.json").tasks[group.task].estimates["learnt_error"][:9],
        future.uncertainty,
        rtol=1e-3,
    )
    assert future.trust.clock == "learnt_error" and future.trust_horizon(9.0).tolist() == [HORIZON] * 9
    for entry in metrics["trust"]["tasks"].values():
        assert set(entry["horizons"][0]["clocks"]) == {STEPS, "entropy", "learnt_error"}
    refitted = dataclasses.replace(model, readout={**model.learnt_error, "offset": model.learnt_error["offset"] + 1})
    assert refitted.estimating(learnt_error.LearntError()) != model.estimating(learnt_error.LearntError()), (
        "it has another clock"
    )
    assert "learnt_error" in choose(model)[0] and "by learnt error" in (job.output / "report.html").read_text()


def test_a_learnt_error_belongs_to_what_it_was_fitted_to(written, tmp_path):
    job, _, model = written
    other = dataclasses.replace(model, params=model.params | {"dynamics": _changed(model, "dynamics")})
    assert other.learnt_error is None
    with pytest.raises(
        WhaleError, match="has no learnt error yet; fit one .*--evaluation.trust.estimates=entropy,lear"
    ):
        other.imagine(*_start(job), uncertainty="learnt_error")
    assert "Without learnt_error" in " ".join(choose(other)[2])
    heads = dataclasses.replace(model, params=model.params | {"reward": _changed(model, "reward")})
    assert heads.learnt_error is not None  # frames do not depend on a head
    moved = dataclasses.replace(model, source=tmp_path / "checkpoints" / "reward" / "1")
    assert moved.learnt_error is None
    beside = dataclasses.replace(moved, trust_file=job.output / "trust.json")
    assert beside.learnt_error is not None
    (tmp_path / "learnt_error.npz").write_bytes(b"no archive")
    with pytest.raises(WhaleError, match="learnt_error.npz holds no learnt error .*; remove it"):
        dataclasses.replace(moved).imagine(*_start(job), uncertainty="learnt_error")
    assert dataclasses.replace(moved).imagine(*_start(job), uncertainty="entropy").uncertainty.shape == (1, HORIZON)


def test_what_cannot_be_fitted_is_refused(written, tmp_path):
    job = dataclasses.replace(written[0], model=dataclasses.replace(written[2]), output=tmp_path)
    with pytest.raises(WhaleError, match="episodes that .* was trained on are not there"):
        with_learnt_error(dataclasses.replace(job, training=None))
    few = dataclasses.replace(SETTINGS, episodes=1)
    with pytest.raises(WhaleError, match="has 16 steps to imagine .* takes 100"):
        with_learnt_error(dataclasses.replace(job, settings=few))
    with pytest.raises(WhaleError, match="does not fit"):
        with_learnt_error(dataclasses.replace(job, settings=dataclasses.replace(SETTINGS, horizon=40)))
    assert not (tmp_path / "learnt_error.npz").exists()


def test_the_suite_goes_on_without_a_learnt_error(written, tmp_path):
    source = tmp_path / "checkpoints" / "reward" / "1"
    job = dataclasses.replace(written[0], output=tmp_path, training=None)
    job = dataclasses.replace(job, model=dataclasses.replace(written[2], source=source))
    found = evaluate(job, {"trust": SETTINGS})["trust"]
    assert found["clocks"] == [STEPS, "entropy"]
    assert any(note.startswith("Without learnt_error: the episodes") for note in found["notes"])


def _changed(model: LoadedModel, component: str):
    return jax.tree.map(lambda leaf: leaf + 0.01, model.params[component])


def _start(job: Job):
    group = read_clips(job.store, SETTINGS)[0]
    return group.frames[:1, :CONTEXT], group.actions[:1]
