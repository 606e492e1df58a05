"""Imagined environments as pure functions: many dreams of one world model, each with its own clock.

A dream shows exactly what `LoadedModel.imagine` shows for the same context and actions, whatever its neighbours do.
Dreams cut their windows and restart at different moments, a few at a time, at the cost of those few.

Dimension keys: B dreams, C frames of context, A actions, N starting states.
"""

import dataclasses
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least
from whale_jax.base.text import say
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.clocks import Clocks, clocks_of
from whale_jax.imagination.dream import CONTEXT, Dream, State
from whale_jax.imagination.environments.starts import Starts, read_starts
from whale_jax.imagination.trust import STEPS, check_tolerance, percent, rounded_up
from whale_jax.imagination.uncertainty.estimators import AUTO, ESTIMATORS, NONE, check_context, check_uncertainty
from whale_jax.imagination.world import LoadedModel
from whale_jax.training.sharding import Params

Info = dict[str, jax.Array]
Result = tuple["DreamState", jax.Array, jax.Array, jax.Array, jax.Array, Info]


@dataclasses.dataclass(frozen=True)
class DreamSettings(Settings):
    """Settings of a dream."""

    context: int = CONTEXT  # C, recorded frames that a dream begins with
    horizon: int = 16  # steps after which a dream is truncated
    uncertainty: str = AUTO  # see `resolve` of estimators; "auto" as in `LoadedModel.estimator`; "none" or ""
    penalty: float = 0.0  # λ; the reward is the model's minus λ times the step's uncertainty
    max_uncertainty: float = float("inf")  # a dream is truncated by a step that is more uncertain
    max_error: float = float("inf")  # a dream is truncated by the first step that is not trusted to stay below it
    temperature: float = 0.0  # of token sampling; 0 takes the most likely tokens
    reward: bool = True  # take the model's reward; without it the reward is the penalty alone

    def __post_init__(self):
        check_least(self, context=1, horizon=1, temperature=0)
        check_uncertainty(self.uncertainty, (AUTO, NONE, ""))
        if not np.isfinite(self.penalty):
            raise WhaleError(f"penalty is a finite number, not {self.penalty!r}.")
        if not self.max_uncertainty >= 0:
            raise WhaleError(f"max_uncertainty is a number from 0 up, not {self.max_uncertainty!r}.")
        check_tolerance(self.max_error)
        if self.uncertainty in (NONE, "") and (self.penalty or np.isfinite(self.max_uncertainty)):
            raise WhaleError(
                "penalty and max_uncertainty are of an uncertainty, and there is none; give "
                f"uncertainty={' or '.join(repr(name) for name in ESTIMATORS)}."
            )


@flax.struct.dataclass
class DreamState:
    """B dreams.

    Attributes:
      dreams: their states, see `Clocks`.
      steps: (B,) int32, steps imagined since the dream began.
      start: (B,) int32, index of the starting state.
      doubt: (B,) float32, the largest uncertainty since the dream began.
    """

    dreams: State
    steps: jax.Array
    start: jax.Array
    doubt: jax.Array

    @property
    def frame(self) -> jax.Array:
        """(B, H, W, 3) uint8, the newest frames."""
        return self.dreams.seen[:, 0, -1]


@dataclasses.dataclass(frozen=True)
class Dreams:
    """B dreams of one world model: `reset`, `step` and `reset_where` are pure and can be scanned under one jit.

    Made by `make_dream`. Dreams that differ only in `params` and `origins` are equal, as they compile to the same code.

    Attributes:
      settings: see `DreamSettings`.
      clocks: the stepping of dreams that begin apart.
      action_spec: the meaning of actions, which are given in its units.
      params: the world model's parameters, those of the estimator, and "starts": {"frames": (N, C, H, W, 3) uint8,
        "actions": (N, C - 1, A) float32 normalised}. With `clock` also "limit" (N,) float32 and "last" (N,) int32: the
        reading of the clock from which dreams are not trusted, and the last step that is.
      origins: (N, 2) int32, the episode in the store and the first frame, for each starting state.
      clock: by what dreams are trusted, see `whale_jax.imagination.trust`; "" without a `max_error`.
    """

    settings: DreamSettings
    clocks: Clocks
    action_spec: ActionSpec
    params: Params = dataclasses.field(compare=False, repr=False)
    origins: np.ndarray = dataclasses.field(compare=False, repr=False)
    clock: str = ""

    @property
    def num_envs(self) -> int:
        """B."""
        return self.clocks.count

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of frames in pixels."""
        return tuple(self.clocks.dream.world.settings.frame_size)

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

        def given(params, rows):
            return self._given(params, chosen[rows])

        dreams = self.clocks.begin_where(params, state.dreams, mask, given)
        steps, start, doubt = (jnp.where(mask, 0, x) for x in (state.steps, state.start, state.doubt))
        state = DreamState(dreams, steps, jnp.where(mask, chosen, start), doubt)
        return state, state.frame

    def step(
        self, params: Params, state: DreamState, action: jax.Array, key: jax.Array, idle: jax.Array | None = None
    ) -> Result:
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
          them "uncertainty"; "reward_model", the reward without penalty; "start"; and with a `max_error` "trusted",
          whether the error is trusted to have stayed below it.
        """
        spec = self.action_spec
        # A wrong value cannot raise on the device; Gymnasium's interface has checked actions from the host.
        action = jnp.clip(action, np.array(spec.low, np.float32), np.array(spec.high, np.float32))
        dreams, step = self.clocks.step(params, state.dreams, spec.normalise(action), self._keys(key), idle)
        predicted = step.read.get("reward", jnp.zeros(self.num_envs, jnp.float32))
        doubt = step.estimates.get("uncertainty", jnp.zeros_like(predicted))
        state = DreamState(dreams, state.steps + 1, state.start, jnp.maximum(state.doubt, doubt))
        truncated = (state.steps >= self.settings.horizon) | (doubt > self.settings.max_uncertainty)
        reward = predicted - self.settings.penalty * doubt if self.settings.penalty else predicted
        info = {**step.estimates, "reward_model": predicted, "start": state.start}
        if self.clock:
            info["trusted"] = self._trusted(params, state)
            truncated |= ~info["trusted"]
        return state, step.frames, reward, jnp.zeros_like(truncated), truncated, info

    def blank(self, params: Params) -> DreamState:
        """Returns a state of zeros, for `reset_where` to fill."""
        count = jnp.zeros(self.num_envs, jnp.int32)
        dreams = self.clocks.blank(params, *self._given(params, count))
        return DreamState(dreams, count, count, jnp.zeros(self.num_envs, jnp.float32))

    def _trusted(self, params: Params, state: DreamState) -> jax.Array:
        """Returns whether the newest step of each dream lies within its trust horizon, (B,) bool."""
        reading = state.steps if self.clock == STEPS else state.doubt * jnp.sqrt(state.steps)
        limit, last = (params["starts"][name][state.start] for name in ("limit", "last"))
        return (reading < limit) & (state.steps <= last)

    def _given(self, params: Params, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the frames and actions that dreams at these starting states begin with."""
        frames, actions = (params["starts"][name][start] for name in ("frames", "actions"))
        return frames, actions

    def without_arrays(self) -> "Dreams":
        """Returns the dream as jit's key: all that its compiled programs depend on, without arrays."""
        return dataclasses.replace(self, params={}, origins=np.zeros((0, 2), np.int32))

    def _keys(self, key: jax.Array) -> jax.Array:
        return key if key.ndim else jax.random.split(key, self.num_envs)


def make_dream(model: LoadedModel, store: EpisodeStore, num_envs: int, settings: DreamSettings | None = None) -> Dreams:
    """Makes dreams of `model` that begin in the store's episodes, see `read_starts`.

    Raises:
      WhaleError: the model lacks a component or the calibration that the settings need, or the episodes are of another
        robot, of another image size or too short.
    """
    settings = DreamSettings() if settings is None else settings
    if num_envs < 1:
        raise WhaleError(f"num_envs={num_envs} leaves nothing to dream; give 1 or more.")
    model.check_episodes(store, settings.context)
    if settings.reward and "reward" not in model.abilities:
        raise WhaleError(
            f"{model.source} holds no reward model; train its reward stage (run the same training to its end, without "
            "--until), or dream with reward=False, where the reward is the penalty alone."
        )
    starts = read_starts(store, settings.context, model.action_spec)
    return dream_of(model, starts, num_envs, settings, [store.records[i]["task"] for i in starts.origins[:, 0]])


def dream_of(
    model: LoadedModel, starts: Starts, num_envs: int, settings: DreamSettings, tasks: Sequence[str] = ()
) -> Dreams:
    """Makes dreams that begin at the given starting states, which are not checked; see `make_dream`.

    A `max_error` needs the task of each starting state.
    """
    weighed = bool(settings.penalty) or np.isfinite(settings.max_uncertainty)
    estimator, note = model.estimator(settings.uncertainty or None)
    if weighed and note:
        raise WhaleError(
            f"penalty and max_uncertainty are meant for retracing. {note} Name the uncertainty that they are to be of, "
            'such as uncertainty="entropy".'
        )
    for sentence in (note, check_context(estimator, settings.context, weighed)):
        if sentence:
            say(sentence)
    dream = model.dream(estimator, settings.temperature)
    dream = dataclasses.replace(dream, heads=("reward",) if settings.reward else (), own_reward=False)
    given, clock = {"frames": starts.frames, "actions": starts.actions}, ""
    if np.isfinite(settings.max_error):
        limits, clock = _limits(model, dream, settings, tasks)
        given |= limits
    dreams = Dreams(
        settings=settings,
        clocks=clocks_of(dream, num_envs),
        action_spec=model.action_spec,
        params={**model.params_for(dream), "starts": jax.device_put(given)},
        origins=starts.origins,
        clock=clock,
    )
    jax.eval_shape(dreams.blank, dreams.params)  # an estimator that cannot run raises here, not at the first reset
    return dreams


def _limits(
    model: LoadedModel, dream: Dream, settings: DreamSettings, tasks: Sequence[str]
) -> tuple[dict[str, np.ndarray], str]:
    """Returns "limit" and "last" of each starting state, see `Dreams`, and the clock that they are readings of.

    Raises:
      WhaleError: the errors of a task are not calibrated for such dreams, or no step of it is trusted.
    """
    every = {task: model.trust_horizon(task, dream, settings.context) for task in sorted(set(tasks))}
    ends = {task: horizon.limit(settings.max_error) for task, horizon in every.items()}
    for task, horizon in every.items():
        if not ends[task][0]:
            raise WhaleError(
                f"With max_error={settings.max_error:g} no step of {task} is trusted: the error of its first one stays "
                f"within {rounded_up(horizon.bound(1)[0]):g} in {percent(horizon.trust.alpha)} of rollouts; allow more."
            )
    limits = np.array([ends[task] for task in tasks])
    return {"limit": limits[:, 0].astype(np.float32), "last": limits[:, 1].astype(np.int32)}, horizon.clock
