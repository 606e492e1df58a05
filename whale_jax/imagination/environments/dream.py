"""Imagined environments as pure functions: many dreams of one world model, each with its own clock.

A dream shows exactly what `WorldModel.imagine` shows for the same context and actions, whatever its neighbours do.
Dreams cut their windows and restart at different moments, a few at a time, at the cost of those few.

Dimension keys: B dreams, C frames of context, A actions, N starting states.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least, check_one_of
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination import rollout as rollouts
from whale_jax.imagination.environments.rows import for_rows, read_rows, write_rows
from whale_jax.imagination.environments.starts import Starts, read_starts
from whale_jax.imagination.uncertainty.estimators import UNCERTAINTIES, resolve
from whale_jax.imagination.world import WorldModel
from whale_jax.models.whale.world_model import Networks
from whale_jax.training.sharding import Params

# Dreams stepped at once on a CPU; with more, the values of a step no longer fit the processor's caches.
ABREAST = 16

Info = dict[str, jax.Array]
Step = tuple["DreamState", jax.Array, jax.Array, jax.Array, jax.Array, Info]


@dataclasses.dataclass(frozen=True)
class DreamSettings(Settings):
    """Settings of a dream."""

    context: int = 4  # C, recorded frames that a dream begins with; 4 let retracing go back 3 actions at once
    horizon: int = 16  # steps after which a dream is truncated
    uncertainty: str = "retracing"  # or "entropy", "ensemble", or "" for none
    penalty: float = 0.0  # λ; the reward is the model's minus λ times the step's uncertainty
    max_uncertainty: float = float("inf")  # a dream is truncated by a step that is more uncertain
    temperature: float = 0.0  # of token sampling; 0 takes the most likely tokens
    reward: bool = True  # take the model's reward; without it the reward is the penalty alone

    def __post_init__(self):
        check_least(self, context=1, horizon=1, temperature=0)
        check_one_of(self, (*UNCERTAINTIES, ""), "uncertainty")
        if not np.isfinite(self.penalty):
            raise WhaleError(f"penalty is a finite number, not {self.penalty!r}.")
        if not self.max_uncertainty >= 0:
            raise WhaleError(f"max_uncertainty is a number from 0 up, not {self.max_uncertainty!r}.")
        if not self.uncertainty and (self.penalty or np.isfinite(self.max_uncertainty)):
            raise WhaleError(
                "penalty and max_uncertainty are of an uncertainty, and there is none; give "
                f"uncertainty={' or '.join(repr(name) for name in UNCERTAINTIES)}."
            )


@flax.struct.dataclass
class DreamState:
    """B dreams.

    Attributes:
      window: the windows, each a batch of one, along a leading axis (B,) of every leaf.
      frame: (B, H, W, 3) uint8, the newest frames.
      steps: (B,) int32, steps imagined since the dream began.
      start: (B,) int32, index of the starting state.
    """

    window: rollouts.RolloutState
    frame: jax.Array
    steps: jax.Array
    start: jax.Array


@dataclasses.dataclass(frozen=True)
class Dream:
    """B dreams of one world model: `reset`, `step` and `reset_where` are pure and can be scanned under one jit.

    Made by `make_dream`. Dreams that differ only in `params` and `origins` are equal, as they compile to the same code.

    Attributes:
      num_envs: B.
      settings: see `DreamSettings`.
      networks: the networks of the world model.
      action_spec: the meaning of actions, which are given in its units.
      estimator: estimates each step's uncertainty; None for no estimate.
      params: the world model's parameters, those of the estimator, and "starts": {"frames": (N, C, H, W, 3) uint8,
        "actions": (N, C - 1, A) float32 normalised}.
      origins: (N, 2) int32, the episode in the store and the first frame, for each starting state.
      chunk: dreams whose windows are recomputed at once.
      abreast: dreams that are stepped at once.
    """

    num_envs: int
    settings: DreamSettings
    networks: Networks
    action_spec: ActionSpec
    estimator: rollouts.Estimator | None
    params: Params = dataclasses.field(compare=False, repr=False)
    origins: np.ndarray = dataclasses.field(compare=False, repr=False)
    chunk: int
    abreast: int

    def reset(self, params: Params, key: jax.Array, start: jax.Array | None = None) -> tuple[DreamState, jax.Array]:
        """Begins all dreams; arguments and results as in `reset_where`."""
        everyone = jnp.ones(self.num_envs, bool)
        return self.reset_where(params, self.blank(params), everyone, key, start)

    def reset_where(
        self, params: Params, state: DreamState, mask: jax.Array, key: jax.Array, start: jax.Array | None = None
    ) -> tuple[DreamState, jax.Array]:
        """Restarts some dreams and leaves the others unchanged.

        Args:
          params: as `self.params`.
          state: the state of all dreams.
          mask: (B,) bool, the dreams to restart.
          key: draws the starting states; one key, or one per dream (B,).
          start: (B,) int32 indices of starting states; one is drawn where the index is negative. None draws all.

        Returns:
          The state and its newest frames (B, H, W, 3) uint8.
        """
        count = len(params["starts"]["frames"])
        # Drawn for all dreams, even those that stay, so that no dream's stream depends on its neighbours.
        drawn = jax.vmap(lambda k: jax.random.randint(k, (), 0, count))(self._keys(key))
        chosen = drawn if start is None else jnp.where(start < 0, drawn, start)

        def begin(params, rows, state):
            window, frame = self._begin(params, chosen[rows])
            fresh = DreamState(window, frame, jnp.zeros_like(rows), chosen[rows])
            return write_rows(state, rows, fresh)

        state = for_rows(mask, self.chunk, begin, params, state)
        return state, state.frame

    def step(
        self, params: Params, state: DreamState, action: jax.Array, key: jax.Array, idle: jax.Array | None = None
    ) -> Step:
        """Imagines one frame of every dream.

        Args:
          params: as `self.params`.
          state: the state of all dreams.
          action: (B, A) float32 in the robot's own units; clipped to their range.
          key: samples the tokens; one key, or one per dream (B,).
          idle: (B,) bool, dreams that restart right after, so that their step is ignored; None if there are none.

        Returns:
          The state; its newest frames (B, H, W, 3) uint8; rewards (B,) float32; terminated (B,) bool, always False,
          as the model does not predict terminations; truncated (B,) bool; and info (B,) by name: the estimates, among
          them "uncertainty"; "reward_model", the reward without penalty; and "start".
        """
        window = self._make_room(params, state.window, idle)
        spec = self.action_spec
        # A wrong value cannot raise on the device; Gymnasium's interface has checked actions from the host.
        action = jnp.clip(action, np.array(spec.low, np.float32), np.array(spec.high, np.float32))
        action = spec.normalise(action)
        window, (frame, estimates) = self._advance(params, window, action, self._keys(key), idle)
        predicted = self._reward(params, state.frame, action, frame)
        doubt = estimates.get("uncertainty", jnp.zeros_like(predicted))
        state = DreamState(window, frame, state.steps + 1, state.start)
        truncated = (state.steps >= self.settings.horizon) | (doubt > self.settings.max_uncertainty)
        reward = predicted - self.settings.penalty * doubt if self.settings.penalty else predicted
        info = {**estimates, "reward_model": predicted, "start": state.start}
        return state, frame, reward, jnp.zeros_like(truncated), truncated, info

    def blank(self, params: Params) -> DreamState:
        """Returns a state of zeros, for `reset_where` to fill."""
        # Shapes alone: finds the state's layout without starting a dream.
        shapes = jax.eval_shape(self._begin, params, jnp.zeros(self.num_envs, jnp.int32))
        window, frame = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        count = jnp.zeros(self.num_envs, jnp.int32)
        return DreamState(window, frame, count, count)

    def _begin(self, params: Params, start: jax.Array) -> tuple[rollouts.RolloutState, jax.Array]:
        frames, actions = (params["starts"][name][start] for name in ("frames", "actions"))

        def one(frames, actions):
            return rollouts.start(self.networks, params, frames[None], actions[None], self.estimator)

        return jax.vmap(one)(frames, actions), frames[:, -1]

    def _advance(self, params: Params, window: rollouts.RolloutState, action, keys, idle: jax.Array | None):
        def one(window, action, key):
            temperature = self.settings.temperature
            window, outputs = rollouts.advance(
                self.networks, params, window, action[None], key, temperature, self.estimator
            )
            return window, jax.tree.map(lambda x: x[0], outputs)

        if self.abreast >= self.num_envs:
            return jax.vmap(one)(window, action, keys)
        moving = jnp.ones(self.num_envs, bool) if idle is None else ~idle
        shapes = jax.eval_shape(jax.vmap(one), window, action, keys)[1]
        outputs = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        # There is always a turn, so values of the parameters alone are better computed once for all visits. The visits
        # therefore read the step's parameters, and not those that `for_rows` ties to each visit.
        def move(_, rows, carry):
            return write_rows(carry, rows, jax.vmap(one)(read_rows(carry[0], rows), action[rows], keys[rows]))

        return for_rows(moving, self.abreast, move, params, (window, outputs))

    def _make_room(self, params: Params, window: rollouts.RolloutState, idle: jax.Array | None):
        def cut(params, rows, window):
            def one(window):
                return rollouts.refill(self.networks, params, window, self.estimator)

            return write_rows(window, rows, jax.vmap(one)(read_rows(window, rows)))

        full = window.time == self.networks.settings.num_frames - 1
        return for_rows(full if idle is None else full & ~idle, self.chunk, cut, params, window)

    def without_arrays(self) -> "Dream":
        """Returns the dream as jit's key: all that its compiled programs depend on, without arrays."""
        return dataclasses.replace(self, params={}, origins=np.zeros((0, 2), np.int32))

    def _reward(self, params: Params, before: jax.Array, action: jax.Array, after: jax.Array) -> jax.Array:
        if not self.settings.reward:
            return jnp.zeros(len(action), jnp.float32)
        return self.networks.predict_reward(params, before, action, after)

    def _keys(self, key: jax.Array) -> jax.Array:
        return key if key.ndim else jax.random.split(key, self.num_envs)


def make_dream(model: WorldModel, store: EpisodeStore, num_envs: int, settings: DreamSettings | None = None) -> Dream:
    """Makes dreams of `model` that begin in the store's episodes, see `read_starts`.

    Raises:
      WhaleError: the model lacks a component that the settings need, or the episodes are of another robot, of another
        image size or too short.
    """
    settings = DreamSettings() if settings is None else settings
    if num_envs < 1:
        raise WhaleError(f"num_envs={num_envs} leaves nothing to dream; give 1 or more.")
    model.check_episodes(store, settings.context)
    if settings.reward and "reward" not in model.params:
        raise WhaleError(
            f"{model.source} holds no reward model; train its reward stage (run the same training to its end, without "
            "--until), or dream with reward=False, where the reward is the penalty alone."
        )
    starts = read_starts(store, settings.context, model.action_spec)
    return dream_of(model, starts, num_envs, settings)


def dream_of(model: WorldModel, starts: Starts, num_envs: int, settings: DreamSettings) -> Dream:
    """Makes dreams that begin at the given starting states, which are not checked; see `make_dream`."""
    estimator = resolve(settings.uncertainty, model.action_spec) if settings.uncertainty else None
    given = jax.device_put({"frames": starts.frames, "actions": starts.actions})
    params = {**model.params_for(estimator), "starts": given}
    dream = Dream(
        num_envs=num_envs,
        settings=settings,
        networks=model.networks,
        action_spec=model.action_spec,
        estimator=estimator,
        params=params,
        origins=starts.origins,
        chunk=max(1, num_envs // 16),
        abreast=ABREAST if jax.default_backend() == "cpu" else num_envs,
    )
    jax.eval_shape(dream.blank, params)  # an estimator that cannot run raises here, not at the first reset
    return dream
