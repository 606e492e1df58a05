"""Acting on imagined frames, which learning a policy in the model and searching for one have in common.

Dimension keys: B rollouts, S stacked frames, A actions.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from whale_jax.control.drq import Drq
from whale_jax.control.replay import Replay
from whale_jax.control.settings import ControlSettings
from whale_jax.imagination.dream import Act, Dream
from whale_jax.training.sharding import Params


@dataclasses.dataclass(frozen=True)
class Method:
    """How imagined rewards are computed.

    Attributes:
      penalty: weight of the uncertainty that the dream estimates.
      generated: share of imagined transitions in a batch; 0 learns from recorded ones alone.
    """

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
      dream: the world model's, with the penalised uncertainty if there is one; drq: the policy's networks.
      settings: the study's; method: that of this run.
    """

    dream: Dream
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

    def dream_from(self, params: Params, recorded: Replay, rows: jax.Array, act: Act, horizon: int, key: jax.Array):
        """Acts on imagined frames from recorded rows (B,) on, each of which has the frames of a rollout's context.

        Returns:
          Frames (B, S + horizon, H, W, 3) uint8, which begin with the given ones, actions (B, horizon, A), the scaled
          rewards (B, horizon), and uncertainty (B, horizon), which is zero without an estimator.
        """
        settings = self.settings
        rows = rows[:, None] + jnp.arange(1 - settings.rollout.context, 1)
        state = self.dream.start(params, recorded.frames[rows], recorded.actions[rows[:, :-1]])
        steps = self.dream.rollout(params, state, act, horizon, key)
        frames, rewards = jnp.concatenate([state.seen, steps.frames], axis=1), steps.read["reward"]
        uncertainty = steps.estimates.get("uncertainty", jnp.zeros_like(rewards))
        return frames, steps.actions, rewards * settings.reward_scale, uncertainty

    @functools.cached_property
    def imagined_return(self):
        """The jitted map from (params, policy's parameters, first frames (B, H, W, 3), key) to returns (B,).

        The returns cover the compared steps. Each rollout starts from one given frame and acts without noise. Returns
        are in the environment's units.
        """
        # The plain reward without any penalty, so that methods can be compared.
        plain = dataclasses.replace(self.dream, estimator=None)

        def run(params, policy, frames, key):
            state = plain.start(params, frames[:, None], jnp.zeros((len(frames), 0, self.drq.action_dim)))

            def act(seen, key):
                return self.drq.mean_action(policy, seen)

            return plain.rollout(params, state, act, self.settings.trial.compared, key).read["reward"].sum(1)

        return jax.jit(run)
