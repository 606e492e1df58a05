"""Offline model-based learning of one policy: imagine, add to the replay, update. All of it is compiled.

Dimension keys: B rollouts, H horizon, S stacked frames, A actions.
"""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.control import replay as replays
from whale_jax.control.acting import Pace, Program
from whale_jax.control.drq import Learner, Transitions
from whale_jax.control.drq import Params as PolicyParams
from whale_jax.control.replay import Replay
from whale_jax.training.sharding import Params


@flax.struct.dataclass
class LearningState:
    """The state of a learning run between updates.

    Attributes:
      learner: networks and optimisers; imagined: ring of transitions, None without imagination.
      segments: () int32, imagined runs written so far; key: the source of all later randomness.
    """

    learner: Learner
    imagined: Replay | None
    segments: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Learning(Program):
    """The actor and critics learn from recorded transitions and from those that the policy takes in the model."""

    @property
    def pace(self) -> Pace:
        rollout = self.settings.rollout
        imagined = rollout.starts * rollout.horizon if self.method.generated else 0
        return Pace(self.settings.updates, self.settings.trial.every, rollout.every, imagined)

    def init(self, key: jax.Array) -> LearningState:
        """Returns the state before the first update."""
        key, init_key = jax.random.split(key)
        rollout, imagined = self.settings.rollout, None
        if self.method.generated:
            at_a_time = rollout.starts
            segments = rollout.capacity // (rollout.horizon * at_a_time) * at_a_time
            spec = (self.settings.learner.stack, rollout.horizon, self.drq.image_size, self.drq.action_dim)
            imagined = replays.ring(segments, *spec)
        return LearningState(self.drq.init(init_key), imagined, jnp.int32(0), key)

    def policy(self, state: LearningState) -> PolicyParams:
        """Returns the parameters for `Drq.mean_action`."""
        return state.learner.params

    def _cycle(self, params: Params, recorded: Replay, starts: jax.Array, state: LearningState):
        key, dream_key, update_key = jax.random.split(state.key, 3)
        imagined, segments, dreamt = state.imagined, state.segments, {}
        if imagined is not None:
            frames, actions, rewards, dreamt = self._imagine(params, recorded, starts, state.learner, dream_key)
            room = len(imagined.rows) // self.settings.rollout.horizon
            imagined = replays.write(imagined, segments % room, frames, actions, rewards)
            segments = segments + len(frames)

        def update(learner, key):
            sample_key, key = jax.random.split(key)
            batch = self._sample(recorded, imagined, segments, sample_key)
            return self.drq.update(learner, batch, key)

        keys = jax.random.split(update_key, self.settings.rollout.every)
        learner, metrics = jax.lax.scan(update, state.learner, keys)
        metrics = jax.tree.map(lambda x: x.mean(), metrics | dreamt)
        return LearningState(learner, imagined, segments, key), metrics

    def _sample(self, recorded: Replay, imagined: Replay | None, segments: jax.Array, key: jax.Array) -> Transitions:
        s = self.settings.learner
        count = round(s.batch_size * self.method.generated)
        draw = functools.partial(replays.sample, stack=s.stack, n_step=s.n_step, discount=s.discount)
        keys, parts = jax.random.split(key), []
        if count < s.batch_size:
            rows = len(recorded.rows)
            parts.append(draw(recorded, keys[0], s.batch_size - count, filled=rows, imagined=False))
        if count:
            filled = jnp.minimum(segments * self.settings.rollout.horizon, len(imagined.rows))
            parts.append(draw(imagined, keys[1], count, filled=filled, imagined=True))
        return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

    def _imagine(self, params: Params, recorded: Replay, starts: jax.Array, learner: Learner, key: jax.Array):
        """Imagines B rollouts: frames (B, S + H, H, W, 3), actions (B, H, A), penalised rewards (B, H), and scalars."""
        settings, keys = self.settings.rollout, jax.random.split(key)
        rows = jax.random.choice(keys[0], starts, (settings.starts,))
        std = self.drq.std(learner.updates)

        def act(frames, key):
            return self.drq.explore(learner.params, frames, std, key)

        dreamt = self.dream_from(params, recorded, rows, act, settings.horizon, keys[1])
        frames, actions, rewards, uncertainty = dreamt
        metrics = {"imagined_reward": rewards, "uncertainty": uncertainty}
        return frames, actions, rewards - self.method.penalty * uncertainty, metrics
