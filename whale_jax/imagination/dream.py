"""The one stepping of dreams: a model, the heads read off its frames, and an estimate of how far to trust them.

Everything that imagines goes through `Dream.step`: `imagine`, environments, learning and search in the model.

Dimension keys: B trajectories, C given and n imagined frames, k frames of a block, S frames that a policy sees,
A actions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.imagination.uncertainty.base import Estimates, Estimator
from whale_jax.models.base import WorldModel
from whale_jax.models.world import World
from whale_jax.training.sharding import Params

CONTEXT = 4  # given frames of a dream, unless another number is asked for; retracing then has all its starts

# Maps (an observation (B, H, W, 3 S) uint8, a key) to normalised actions (B, A).
Act = Callable[[jax.Array, jax.Array], jax.Array]


@flax.struct.dataclass
class State:
    """B dreams between two steps.

    Attributes:
      carry: the model's.
      seen: (B, S, H, W, 3) uint8, the newest frames, oldest first; before there are S, the first is repeated.
      memory: the estimator's.
    """

    carry: Any
    seen: jax.Array
    memory: Any

    @property
    def frame(self) -> jax.Array:
        """(B, H, W, 3) uint8, the newest frame."""
        return self.seen[:, -1]


@flax.struct.dataclass
class Step:
    """The outcome of one step of B dreams, or, with an axis n after B, that of a rollout of n steps.

    Attributes:
      frames: (B, H, W, 3) uint8.
      actions: (B, A) normalised, those taken.
      read: what each head says of the step, by name, (B, …).
      own_reward: (B,) the model's own prediction of the reward; None unless it was asked for.
      estimates: named estimates (B,), among them "uncertainty"; {} without an estimator.
    """

    frames: jax.Array
    actions: jax.Array
    read: dict[str, jax.Array]
    own_reward: jax.Array | None
    estimates: Estimates


@dataclasses.dataclass(frozen=True)
class Dream:
    """Dreams of one world model, as pure functions of its parameters. It is hashable, as jit's static argument.

    Attributes:
      world: the model and its heads.
      estimator: estimates each step's uncertainty; None for no estimate.
      temperature: of sampling; 0 takes the most likely values.
      heads: names of the heads that are read.
      own_reward: whether the model's own reward is read too.
      stack: S, number of frames that a policy sees.
    """

    world: World
    estimator: Estimator | None = None
    temperature: float = 0.0
    heads: tuple[str, ...] = ()
    own_reward: bool = False
    stack: int = 1

    @property
    def model(self) -> WorldModel:
        return self.world.model

    def start(self, params: Params, frames: jax.Array, actions: jax.Array) -> State:
        """Returns the state after C given frames (B, C, H, W, 3) uint8 and C - 1 normalised actions between them."""
        rows, settings = len(frames), self.model.settings
        chex.assert_shape(frames, (rows, None, *settings.frame_size, 3))
        chex.assert_type(frames, jnp.uint8)
        chex.assert_shape(actions, (rows, frames.shape[1] - 1, settings.action_dim))
        carry, memory = self.model.start(params, frames, actions), ()
        if self.estimator is not None:
            memory = self.estimator.start(self.model, params, carry, actions)
        missing = max(0, self.stack - frames.shape[1])
        seen = jnp.concatenate([jnp.repeat(frames[:, :1], missing, axis=1), frames[:, -self.stack :]], axis=1)
        return State(carry, seen, memory)

    def step(self, params: Params, state: State, action: jax.Array, key: jax.Array) -> tuple[State, Step]:
        """Imagines one frame, which follows the newest one if the actions (B, A), normalised, are taken.

        Raises:
          WhaleError: the model imagines several frames at once.
        """
        state, block = self.advance(params, self.make_room(params, state), action[:, None], key)
        return state, jax.tree.map(lambda x: x[:, 0], block)

    def make_room(self, params: Params, state: State) -> State:
        """Returns the state with room for another step."""
        full = self.model.full
        if full(state.carry) is None:
            return state

        # A loop of zero or one turns: unlike a branch, it updates the state in place instead of copying it.
        def turn(parts):
            return self._refill(params, *parts)

        carry, memory = jax.lax.while_loop(lambda parts: full(parts[0]), turn, (state.carry, state.memory))
        return state.replace(carry=carry, memory=memory)

    def refill(self, params: Params, state: State) -> State:
        """Returns a full state with room for more frames."""
        carry, memory = self._refill(params, state.carry, state.memory)
        return state.replace(carry=carry, memory=memory)

    def _refill(self, params: Params, carry: Any, memory: Any) -> tuple[Any, Any]:
        carry = self.model.refill(params, carry)
        return carry, memory if self.estimator is None else self.estimator.refill(self.model, params, carry, memory)

    def advance(self, params: Params, state: State, actions: jax.Array, key: jax.Array) -> tuple[State, Step]:
        """Imagines a block of k frames in a state that has room; `actions` and the step's arrays are (B, k, …).

        Raises:
          WhaleError: there are not k actions.
        """
        if actions.shape[1] != self.model.settings.block:
            raise WhaleError(
                f"A {self.model.name} imagines {self.model.settings.block} frames at once, from as many actions, and "
                f"{actions.shape[1]} is given; use its variant that imagines a single frame."
            )
        carry, prediction = self.model.step(params, state.carry, actions, key, self.temperature)
        chex.assert_shape(prediction.frames, (*actions.shape[:2], *state.seen.shape[2:]))
        chex.assert_type(prediction.frames, jnp.uint8)
        if prediction.entropy is not None:
            chex.assert_shape(prediction.entropy, actions.shape[:2])
        memory, estimates = state.memory, {}
        if self.estimator is not None:
            memory, estimates = self.estimator.estimate(self.model, params, carry, memory, actions, prediction)
            chex.assert_shape(list(estimates.values()), actions.shape[:2])
        before = jnp.concatenate([state.seen[:, -1:], prediction.frames[:, :-1]], axis=1)
        step = Step(
            frames=prediction.frames,
            actions=actions,
            read=self._read(params, before, actions, prediction.frames),
            own_reward=self.model.own_reward(params, carry) if self.own_reward else None,
            estimates=estimates,
        )
        seen = jnp.concatenate([state.seen, prediction.frames], axis=1)[:, -self.stack :]
        return State(carry, seen, memory), step

    def _read(self, params: Params, frames: jax.Array, actions: jax.Array, following: jax.Array) -> dict[str, Any]:
        """Returns what each head says of transitions (B, k, …)."""
        lead, found = actions.shape[:2], {}
        merged = [x.reshape(-1, *x.shape[2:]) for x in (frames, actions, following)]
        for name in self.heads:
            values = self.world.heads_by_name[name].read(params[name], *merged)
            found[name] = values.reshape(*lead, *values.shape[1:])
        return found

    def rollout(self, params: Params, state: State, act: "jax.Array | Act", horizon: int, key: jax.Array) -> Step:
        """Imagines n frames.

        Args:
          params: all that the model, the heads and the estimator need.
          state: as `start` gave it.
          act: normalised actions (B, n, A), or a policy that maps (the newest S frames (B, H, W, 3 S) uint8, key) to
            normalised actions (B, A). A policy runs inside the compiled program if it is marked with `in_jax` or if
            this call is itself compiled; otherwise it is called from Python with NumPy arrays, once a step.
          horizon: n.
          key: key for sampling and for the policy. Folding in a step's number makes a longer horizon begin with the
            same frames.

        Returns:
          All steps, (B, n, …).

        Raises:
          WhaleError: a policy acts on a model that imagines several frames at once.
        """
        if not callable(act):
            return self._along(params, state, act, key)
        if self.model.settings.block > 1:
            raise WhaleError(
                f"A {self.model.name} imagines {self.model.settings.block} frames at once, and a policy has to see "
                "each before it acts; use its variant that imagines a single frame."
            )
        compiled = getattr(act, "in_jax", False) or any(
            isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, params, key))
        )
        return (self._scanned if compiled else self._stepped)(params, state, act, horizon, key)

    def _along(self, params: Params, state: State, actions: jax.Array, key: jax.Array) -> Step:
        block, count = self.model.settings.block, actions.shape[1]
        blocks = -(-count // block)
        # The last block is filled up with its last action, and its frames past the horizon are dropped.
        filler = jnp.repeat(actions[:, -1:], blocks * block - count, axis=1)
        actions = jnp.concatenate([actions, filler], axis=1).reshape(len(actions), blocks, block, -1).swapaxes(0, 1)

        def body(state, inputs):
            block_actions, i = inputs
            state = self.make_room(params, state)
            return self.advance(params, state, block_actions, _keys(key, i)[1])

        _, steps = jax.lax.scan(body, state, (actions, jnp.arange(blocks)))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :count], steps)

    def _scanned(self, params: Params, state: State, act: Act, horizon: int, key: jax.Array) -> Step:
        def body(state, i):
            act_key, own_key = _keys(key, i)
            return self.step(params, state, act(joined(state.seen), act_key), own_key)

        _, steps = jax.lax.scan(body, state, jnp.arange(horizon))
        return jax.tree.map(lambda x: x.swapaxes(0, 1), steps)

    def _stepped(self, params: Params, state: State, act: Act, horizon: int, key: jax.Array) -> Step:
        seen, steps = np.asarray(joined(state.seen)), []
        for i in range(horizon):
            act_key, own_key = _keys(key, i)
            state, step = take_step(self, params, state, act(seen, act_key), own_key)
            steps.append(jax.tree.map(np.asarray, step))
            frame = steps[-1].frames
            seen = frame if self.stack == 1 else np.concatenate([seen[..., 3:], frame], axis=-1)
        return jax.tree.map(lambda *x: np.stack(x, axis=1), *steps)


def joined(seen: jax.Array) -> jax.Array:
    """Returns frames (B, S, H, W, 3) as a policy sees them, (B, H, W, 3 S), oldest first."""
    return seen[:, 0] if seen.shape[1] == 1 else jnp.concatenate(list(seen.swapaxes(0, 1)), axis=-1)


def in_jax(policy: Any) -> Any:
    """Marks a policy as one that JAX can trace, so that it runs inside the compiled rollout; returns it."""
    policy.in_jax = True
    return policy


def _keys(key: jax.Array, step: Any) -> jax.Array:
    """Returns the keys of a step for the policy and for the model."""
    return jax.random.split(jax.random.fold_in(key, step))


def _start(dream: Dream, params: Params, frames: jax.Array, actions: jax.Array) -> State:
    return dream.start(params, frames, actions)


def _step(dream: Dream, params: Params, state: State, action: jax.Array, key: jax.Array) -> tuple[State, Step]:
    return dream.step(params, state, action, key)


def _rollout(
    dream: Dream, params: Params, frames: jax.Array, actions: jax.Array, act: Act | None, horizon: int, key: jax.Array
) -> Step:
    past = frames.shape[1] - 1
    state = dream.start(params, frames, actions[:, :past])
    return dream.rollout(params, state, actions[:, past:] if act is None else act, horizon, key)


# Compiled once for all dreams of models with the same settings.
take_start = jax.jit(_start, static_argnums=0)
take_step = jax.jit(_step, static_argnums=0)
# (dream, params, C given frames, actions, policy or None, horizon, key) to all steps. Without a policy, the actions are
# the C - 1 between the frames and then those to take.
take_rollout = jax.jit(_rollout, static_argnums=(0, 4, 5))
