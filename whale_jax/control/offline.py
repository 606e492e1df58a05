"""Offline model-based learning of one policy: imagine, add to the replay, update; all of it compiled.

Dimension keys: B rollouts, H horizon, S stacked frames, A actions.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from whale_jax.control import replay as replays
from whale_jax.control.drq import Drq, Learner, Transitions
from whale_jax.control.replay import Replay
from whale_jax.control.settings import ControlSettings
from whale_jax.imagination import rollout as rollouts
from whale_jax.imagination.rollout import Estimator, RolloutState
from whale_jax.imagination.uncertainty import UNCERTAINTIES, resolve
from whale_jax.imagination.world import WorldModel
from whale_jax.models.reward import expected_reward
from whale_jax.models.world_model import Networks, Params
from whale_jax.nn import lpips


@flax.struct.dataclass
class LearningState:
    """What a run of learning carries on.

    Attributes:
      learner: networks and optimisers; imagined: ring of transitions, None without imagination.
      segments: () int32, imagined runs written so far; key: of all that is random from here on.
    """

    learner: Learner
    imagined: Replay | None
    segments: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Method:
    """How imagined rewards are made.

    Attributes:
      estimator: of the uncertainty that is penalised, None for none.
      penalty: its weight.
      generated: share of imagined transitions in a batch; 0 learns from recorded ones alone.
    """

    estimator: Estimator | None
    penalty: float
    generated: float


@dataclasses.dataclass(frozen=True)
class Learning:
    """The compiled programs of one run.

    Attributes:
      networks: of the world model; drq: the learner; settings: of the study; method: of this run.
    """

    networks: Networks
    drq: Drq
    settings: ControlSettings
    method: Method

    def __hash__(self) -> int:
        return id(self)

    def init(self, key: jax.Array) -> LearningState:
        """The state before the first update."""
        key, init_key = jax.random.split(key)
        rollout, imagined = self.settings.rollout, None
        if self.method.generated:
            at_a_time = rollout.starts
            segments = rollout.capacity // (rollout.horizon * at_a_time) * at_a_time
            spec = (self.settings.learner.stack, rollout.horizon, self.drq.image_size, self.drq.action_dim)
            imagined = replays.ring(segments, *spec)
        return LearningState(self.drq.init(init_key), imagined, jnp.int32(0), key)

    @functools.cached_property
    def cycle(self):
        """(params, recorded, starts, state) to the state after a round of rollouts and its updates, and scalars.

        `params` are the world model's, `starts` the rows of the recorded that rollouts may start from; the state's
        buffers are given away.
        """
        return jax.jit(self._cycle, donate_argnums=3)

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
        """Frames (B, S + H, H, W, 3), actions (B, H, A), penalised rewards (B, H), and scalars of B rollouts."""
        settings = self.settings.rollout
        context, keys = settings.context, jax.random.split(key)
        rows = jax.random.choice(keys[0], starts, (settings.starts,))
        rows = rows[:, None] + jnp.arange(1 - context, 1)
        state = rollouts.start(
            self.networks, params, recorded.frames[rows], recorded.actions[rows[:, :-1]], self.method.estimator
        )
        std = self.drq.std(learner.updates)

        def act(frames, key):
            return self.drq.explore(learner.params, frames, std, key)

        given = recorded.frames[rows[:, context - self.settings.learner.stack :]]
        frames, actions, rewards, uncertainty = self.dream(params, state, given, act, settings.horizon, keys[1])
        scaled = rewards * self.settings.reward_scale
        metrics = {"imagined_reward": scaled, "uncertainty": uncertainty}
        frames = jnp.concatenate([given, frames], axis=1)
        return frames, actions, scaled - self.method.penalty * uncertainty, metrics

    def dream(self, params: Params, state: RolloutState, given: jax.Array, act: Any, horizon: int, key: jax.Array):
        """Acts on imagined frames.

        Args:
          state: rollouts that were started; given: (B, S, H, W, 3) uint8, their newest frames.
          act: (stacked frames (B, H, W, 3 S), key) to normalised actions (B, A).

        Returns:
          Frames (B, horizon, H, W, 3) uint8, actions (B, horizon, A), rewards (B, horizon) as the model predicts them,
          and uncertainty (B, horizon), zeros without an estimator.
        """
        temperature, estimator = self.settings.rollout.temperature, self.method.estimator

        def step(carry, key):
            state, seen = carry
            act_key, token_key = jax.random.split(key)
            action = act(replays.join(seen), act_key)
            state, (frame, estimates) = rollouts.step(
                self.networks, params, state, action, token_key, temperature, estimator
            )
            logits = self.networks.reward_logits(params, seen[:, -1], action, frame)
            reward = expected_reward(self.networks.settings.reward, logits)
            uncertainty = estimates.get("uncertainty", jnp.zeros_like(reward))
            seen = jnp.concatenate([seen[:, 1:], frame[:, None]], axis=1)
            return (state, seen), (frame, action, reward, uncertainty)

        _, outputs = jax.lax.scan(step, (state, given), jax.random.split(key, horizon))
        return jax.tree.map(lambda x: x.swapaxes(0, 1), outputs)

    @functools.cached_property
    def imagined_return(self):
        """(params, actor's parameters, first frames (B, H, W, 3), key) to (B,) returns of the steps compared.

        From one given frame each, without noise, in the environment's units.
        """

        def run(params, actor, frames, key):
            state = rollouts.start(
                self.networks, params, frames[:, None], jnp.zeros((len(frames), 0, self.drq.action_dim))
            )
            given = jnp.repeat(frames[:, None], self.settings.learner.stack, axis=1)
            plain = dataclasses.replace(self, method=Method(None, 0.0, 1.0))

            def act(seen, key):
                return self.drq.mean_action(actor, seen)

            _, _, rewards, _ = plain.dream(params, state, given, act, self.settings.trial.compared, key)
            return rewards.sum(1)

        return jax.jit(run)


class Programs:
    """The programs of a study, compiled once for all tasks and seeds."""

    def __init__(self, model: WorldModel, settings: ControlSettings):
        self.model, self.settings = model, settings
        self._made: dict[tuple[str, float, float], Learning] = {}

    def learning(self, method: str, penalty: float, generated: float) -> Learning:
        """Those of runs that penalise the uncertainty named `method`, or none if it names none or weighs nothing."""
        key = (method, penalty, generated)
        if key not in self._made:
            model, named = self.model, method in UNCERTAINTIES and penalty and generated
            estimator = resolve(method, model.action_spec) if named else None
            drq = Drq(self.settings.learner, model.action_spec.dim, model.networks.settings.tokenizer.image_size)
            how = Method(estimator, penalty, generated)
            self._made[key] = Learning(model.networks, drq, self.settings, how)
        return self._made[key]

    def params(self, learning: Learning) -> Params:
        """The world model's parameters, and what the estimator needs beside them."""
        params, estimator = dict(self.model.params), learning.method.estimator
        if estimator is not None and "lpips" in estimator.needs:
            params["lpips"] = lpips.weights()
        return params
