"""Acting on imagined frames, which learning a policy in the model and searching for one have in common.

Dimension keys: B rollouts, S stacked frames, A actions.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from whale_jax.control.drq import Drq
from whale_jax.control.replay import Replay, join
from whale_jax.control.settings import ControlSettings
from whale_jax.imagination import rollout as rollouts
from whale_jax.imagination.rollout import Estimator, RolloutState
from whale_jax.models.whale.world_model import Networks
from whale_jax.training.sharding import Params


@dataclasses.dataclass(frozen=True)
class Method:
    """How imagined rewards are computed.

    Attributes:
      estimator: estimates the penalised uncertainty; None for no penalty.
      penalty: weight of the uncertainty.
      generated: share of imagined transitions in a batch; 0 learns from recorded ones alone.
    """

    estimator: Estimator | None
    penalty: float
    generated: float


@dataclasses.dataclass(frozen=True)
class Pace:
    """The length of a run and of its parts.

    Attributes:
      updates: updates of the policy in all; every: updates between two trials.
      cycle: updates in one compiled call; imagined: steps that the call imagines.
    """

    updates: int
    every: int
    cycle: int
    imagined: int


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The compiled programs of one run.

    Attributes:
      networks: the world model's; drq: the policy's networks; settings: the study's; method: that of this run.
    """

    networks: Networks
    drq: Drq
    settings: ControlSettings
    method: Method

    @functools.cached_property
    def cycle(self):
        """The jitted map from (params, recorded, starts, state) to the state after a cycle of updates, and scalars.

        `params` are the world model's, and `starts` are the recorded rows where rollouts may start. The state's buffers
        are donated.
        """
        return jax.jit(self._cycle, donate_argnums=3)

    def dream_from(self, params: Params, recorded: Replay, rows: jax.Array, act: Any, horizon: int, key: jax.Array):
        """Acts on imagined frames from recorded rows (B,) on, each of which has the frames of a rollout's context.

        Returns:
          As `dream`, but the frames (B, S + horizon, H, W, 3) begin with the given ones, and rewards are scaled.
        """
        settings = self.settings
        rows = rows[:, None] + jnp.arange(1 - settings.rollout.context, 1)
        frames, actions = recorded.frames[rows], recorded.actions[rows[:, :-1]]
        state = rollouts.start(self.networks, params, frames, actions, self.method.estimator)
        given = frames[:, -settings.learner.stack :]
        frames, actions, rewards, uncertainty = self.dream(params, state, given, act, horizon, key)
        return jnp.concatenate([given, frames], axis=1), actions, rewards * settings.reward_scale, uncertainty

    def dream(self, params: Params, state: RolloutState, given: jax.Array, act: Any, horizon: int, key: jax.Array):
        """Acts on imagined frames.

        Args:
          state: started rollouts; given: (B, S, H, W, 3) uint8, their newest frames.
          act: maps (stacked frames (B, H, W, 3 S), key) to normalised actions (B, A).

        Returns:
          Frames (B, horizon, H, W, 3) uint8, actions (B, horizon, A), the model's predicted rewards (B, horizon), and
          uncertainty (B, horizon), which is zero without an estimator.
        """
        temperature, estimator = self.settings.rollout.temperature, self.method.estimator

        def step(carry, key):
            state, seen = carry
            act_key, token_key = jax.random.split(key)
            action = act(join(seen), act_key)
            state, (frame, estimates) = rollouts.step(
                self.networks, params, state, action, token_key, temperature, estimator
            )
            reward = self.networks.predict_reward(params, seen[:, -1], action, frame)
            uncertainty = estimates.get("uncertainty", jnp.zeros_like(reward))
            seen = jnp.concatenate([seen[:, 1:], frame[:, None]], axis=1)
            return (state, seen), (frame, action, reward, uncertainty)

        _, outputs = jax.lax.scan(step, (state, given), jax.random.split(key, horizon))
        return jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)

    @functools.cached_property
    def imagined_return(self):
        """The jitted map from (params, policy's parameters, first frames (B, H, W, 3), key) to returns (B,).

        The returns cover the compared steps. Each rollout starts from one given frame and acts without noise. Returns
        are in the environment's units.
        """

        def run(params, policy, frames, key):
            state = rollouts.start(
                self.networks, params, frames[:, None], jnp.zeros((len(frames), 0, self.drq.action_dim))
            )
            given = jnp.repeat(frames[:, None], self.settings.learner.stack, axis=1)
            # The plain reward without any penalty, so that methods can be compared.
            plain = dataclasses.replace(self, method=Method(None, 0.0, 1.0))

            def act(seen, key):
                return self.drq.mean_action(policy, seen)

            _, _, rewards, _ = plain.dream(params, state, given, act, self.settings.trial.compared, key)
            return rewards.sum(1)

        return jax.jit(run)
