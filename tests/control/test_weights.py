"""The weight of an uncertainty that is to take a share of the rewards' deviation."""

import dataclasses

import numpy as np
import pytest

from whale_jax.base.errors import WhaleError
from whale_jax.control.settings import ControlSettings, ProbeSettings, RolloutSettings
from whale_jax.control.weights import recorded_clips, rollout_starts, weight_of


def settings(**changes) -> ControlSettings:
    shares = {"retracing": 0.5, "entropy": 0.5}
    made = ControlSettings(tasks=("door-close",), methods=("entropy", "none"), penalties=shares, penalty_unit="share")
    return dataclasses.replace(made, rollout=RolloutSettings(context=3, horizon=2), reward_scale=0.5, **changes)


@pytest.fixture(scope="module")
def store(episodes):
    return episodes.select(split="train", tasks="door-close")


def test_a_penalty_deviates_by_its_share_of_the_rewards(model, store):
    frames, actions = recorded_clips(store, 3, 4)
    assert frames.shape[1] == 3 and actions.shape[1] == 4 and 1 < len(frames) <= 64
    uncertainty = model.imagine(frames, actions, uncertainty="entropy").uncertainty
    rewards = 0.5 * np.concatenate([store.read(i).rewards for i in range(len(store))])
    for share in (0.1, 0.5):
        weight = weight_of(model, store, settings(), "entropy", share)
        np.testing.assert_allclose((weight * uncertainty).std(), share * rewards.std(), rtol=1e-4)


def test_the_settings_of_an_uncertainty_count(model, store):
    uncertainty = "retracing:steps=1:starts=any"
    frames, actions = recorded_clips(store, 3, 4)
    values = model.imagine(frames, actions, uncertainty=uncertainty).uncertainty
    weight = weight_of(model, store, settings(uncertainties={"retracing": uncertainty}), "retracing", 0.5)
    rewards = 0.5 * np.concatenate([store.read(i).rewards for i in range(len(store))])
    np.testing.assert_allclose(weight, 0.5 * rewards.std() / values.std(), rtol=1e-4)


def test_what_cannot_be_weighed_is_refused(model, store):
    with pytest.raises(WhaleError, match="No episode of .* has the 22 steps of a rollout"):
        rollout_starts(store, 22)
    with pytest.raises(WhaleError, match="no penalty unit named 'part'"):
        settings(penalty_unit="part")
    for change in ({"penalties": {"entropy": 50.0}}, {"probe": ProbeSettings(penalties=(0.1, 50.0))}):
        with pytest.raises(WhaleError, match="shares of the rewards' deviation, at most 10"):
            settings(**change)
