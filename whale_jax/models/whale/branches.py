"""Branches of a rollout: the newest frame once more, along other actions from earlier frames (docs/method.md §7).

Dimension keys: B trajectories, A actions, H W pixels, S branches, L actions of the longest.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.models.whale.networks import Networks
from whale_jax.models.whale.window import Window, at, next_tokens
from whale_jax.nn.categorical import mode
from whale_jax.nn.layers import to_bytes
from whale_jax.nn.transformer import Places, TimeCache
from whale_jax.training.sharding import Params

Turn = int | jax.Array


def branch(
    networks: Networks,
    params: Params,
    state: Window,
    steps: Sequence[int],
    actions: jax.Array,
    hold_z: bool = False,
    further: Turn = 0,
) -> jax.Array:
    """Predicts the newest frame o_{t+1} once more from each o_{t-k-further}.

    The branches run side by side, as frames of one call. They share the window, and each sees it up to its own start.
    Every branch takes the most likely tokens.

    Args:
      state: the window after the step to o_{t+1}.
      steps: numbers k of actions to go back, each at least 0.
      actions: (B, S, L, A) normalised, in the order of `steps`; a branch takes its first k + further + 1.
      hold_z: take z_t for every step of every branch, and decode only the last frames, with the frames of the window
        as history instead of each branch's own.
      further: number of actions that every branch goes back in addition. It may be traced.

    Returns:
      Frames (B, S, H, W, 3) uint8 in the order of `steps`. A branch that starts before frame 0 has no meaning.
    """
    plan = _Plan(state, steps, actions, further)
    run = _with_z_held if hold_z else _with_own_z
    frames = run(networks, params, state, plan)
    return frames[:, np.array([plan.order.index(k) for k in steps])]


class _Plan:
    """The turns in which branches move: the one that starts furthest back moves first, so that all arrive together.

    For K = {1, 2, 3}, with o a frame of the window and ô one of the branch:

        turn           0         1         2         3
        k = 3    o_t-3 ──► ô_t-2 ──► ô_t-1 ──► ô_t ──► ô_t+1
        k = 2              o_t-2 ──► ô_t-1 ──► ô_t ──► ô_t+1
        k = 1                        o_t-1 ──► ô_t ──► ô_t+1
        running        1         2         3         3          branches that move in the turn
        begun          0         1         2         3          those of them that moved before

    The opening turns, in which branches begin, are three here. In the rest all branches move; there are k = 1 of
    them, and `further` more.
    """

    def __init__(self, state: Window, steps: Sequence[int], actions: jax.Array, further: Turn):
        self.order = sorted(set(steps), reverse=True)
        self.t, self.count = state.time - 1, len(self.order)
        # A start before frame 0 is ignored later.
        self.starts = jnp.maximum(self.t - further - jnp.array(self.order), 0)
        self._actions = actions[:, np.array([list(steps).index(k) for k in self.order])]
        self.ids, self.z = state.ids[:, self.starts], state.z[:, self.starts]  # of the branches' first frames
        self._delays = self.order[0] - np.array(self.order)
        self.opening, self.rest = self.order[0] - self.order[-1] + 1, self.order[-1] + further
        self.most = actions.shape[2] - self.opening  # the rest has at most so many turns
        self.running = [int((self._delays <= turn).sum()) for turn in range(self.opening)]
        self.begun = [0, *self.running[:-1]]

    def moving(self, turn: Turn) -> tuple[int, int]:
        """Returns how many branches move in a turn, and how many of them moved before."""
        opening = isinstance(turn, int) and turn < self.opening
        return (self.running[turn], self.begun[turn]) if opening else (self.count, self.count)

    def times(self, turn: Turn) -> jax.Array:
        """Returns the positions of the frames that the turn's branches move from."""
        now, _ = self.moving(turn)
        return self.starts[:now] + turn - self._delays[:now]

    def actions(self, turn: Turn) -> jax.Array:
        """Returns the action (B, S, A) that each of the turn's branches takes in it."""
        now, _ = self.moving(turn)
        return self._actions[:, np.arange(now), turn - self._delays[:now]]

    def joined(self, own: jax.Array, first: jax.Array, turn: Turn) -> jax.Array:
        """Joins values (B, S, …) of branches on their way with the first values of those that begin in this turn."""
        now, old = self.moving(turn)
        return jnp.concatenate([own, first[:, old:now]], axis=1)

    def track(self, cache: TimeCache, late: bool = False) -> "Track":
        """Returns a network's track; with `late`, branches first add a frame in the turn after their first."""
        opening = self.begun if late else self.running
        return Track.beside(cache, [*opening, *[self.count] * self.most])

    def run(self, turn: Callable[..., Any], tracks: "list[Track]", *values: Any) -> Any:
        """Takes all turns, and returns the last values; `turn` maps (turn, tracks, *values) to (tracks, *values)."""
        for j in range(self.opening):
            tracks, *values = turn(j, tracks, *values)
        if isinstance(self.rest, int):
            for j in range(self.opening, self.opening + self.rest):
                tracks, *values = turn(j, tracks, *values)
            return values
        opened = tracks

        def body(i, carry):
            slots, values = carry
            tracks = [track.with_slots(own) for track, own in zip(opened, slots, strict=True)]
            tracks, *values = turn(self.opening + i, tracks, *values)
            return [track.slots for track in tracks], values

        # The window is only read, so the loop carries the branches' own slots alone.
        return jax.lax.fori_loop(0, self.rest, body, ([track.slots for track in tracks], values))[1]


def _with_own_z(networks: Networks, params: Params, state: Window, plan: _Plan) -> jax.Array:
    """Returns the last frames of branches that infer z and decode after each of their frames, as a rollout does."""
    conditioned = state.history is not None
    longer = state.history.time - state.time if conditioned else 0  # by so many frames the history is longer

    def turn(j, tracks, ids, z, frames):
        dynamics, decoder, *prior = tracks
        (now, old), times = plan.moving(j), plan.times(j)
        shared = plan.starts[:now] + 1
        if conditioned and old:
            previous = jnp.pad(plan.actions(j - 1)[:, :old], ((0, 0), (0, 0), (0, 1)))
            cache = prior[0].at(j, times[:old] + longer, shared[:old] + longer)
            log_p, cache = networks.infer_behaviour_more(params, frames, previous, cache)
            prior, z = [prior[0].after(cache)], mode(log_p).reshape(*log_p.shape[:2], -1)
        z = plan.joined(z, plan.z, j)
        ids, dynamics = _next_ids(networks, params, dynamics, plan, j, plan.joined(ids, plan.ids, j), z)
        pixels, cache = networks.decode_more(params, ids, decoder.at(j, times + 1, shared))
        return [dynamics, decoder.after(cache), *prior], ids, z, to_bytes(pixels)

    tracks = [plan.track(state.dynamics), plan.track(state.decoder)]
    tracks += [plan.track(state.history.prior, late=True)] if conditioned else []
    return plan.run(turn, tracks, plan.ids[:, :0], plan.z[:, :0], None)[-1]


def _with_z_held(networks: Networks, params: Params, state: Window, plan: _Plan) -> jax.Array:
    """Returns the last frames of branches that all take z_t, so that no frame on the way needs to be decoded."""
    z = jnp.broadcast_to(at(state.z, plan.t)[:, None], plan.z.shape)

    def turn(j, tracks, ids):
        now, _ = plan.moving(j)
        ids, dynamics = _next_ids(networks, params, tracks[0], plan, j, plan.joined(ids, plan.ids, j), z[:, :now])
        return [dynamics], ids

    [ids] = plan.run(turn, [plan.track(state.dynamics)], plan.ids[:, :0])
    now = jnp.broadcast_to(plan.t + 1, plan.count)
    return to_bytes(networks.decode_more(params, ids, Track.beside(state.decoder, [plan.count]).at(0, now, now))[0])


def _next_ids(networks: Networks, params: Params, dynamics: "Track", plan: _Plan, turn: Turn, ids, z):
    now, _ = plan.moving(turn)
    masked = networks.settings.dynamics.decode_mode == "maskgit"  # there the new frame enters, one place later
    cache = dynamics.at(turn, plan.times(turn) + masked, plan.starts[:now] + masked)
    ids, _, cache = next_tokens(networks, params, cache, ids, plan.actions(turn), z, jax.random.key(0), 0.0)
    return ids, dynamics.after(cache)


@dataclasses.dataclass(frozen=True)
class Track:
    """A network's cache with slots for the branches' own frames, and the places of these.

    Attributes:
      cache: of the window, with slots beside it.
      counts: how many branches add a frame, by turn: the first ones, each a slot.
    """

    cache: TimeCache
    counts: tuple[int, ...]

    @classmethod
    def beside(cls, cache: TimeCache, counts: Sequence[int]) -> "Track":
        """Returns a track with empty slots beside the window."""
        return cls(cache.branch(sum(counts)), tuple(counts))

    def at(self, turn: Turn, times: jax.Array, shared: jax.Array) -> TimeCache:
        """Returns the cache for the turn's frames.

        The frames stand at `times` (S,). Each sees `shared` (S,) frames of the window and its own branch.
        """
        branch = np.concatenate([np.arange(count) for count in self.counts])
        own = (branch == np.arange(len(times))[:, None]) & (np.repeat(np.arange(len(self.counts)), self.counts) <= turn)
        seen = jnp.concatenate([jnp.arange(self.cache.slots) < shared[:, None], own], axis=1)
        offsets = np.cumsum([0, *self.counts[:-1]])
        return self.cache.replace(places=Places(times, jnp.array(offsets)[turn], seen))

    def after(self, cache: TimeCache) -> "Track":
        """Returns the track with the cache that a network left."""
        return dataclasses.replace(self, cache=cache)

    @property
    def slots(self) -> list[tuple[jax.Array, jax.Array]]:
        """The keys and values of the branches' own frames, by layer."""
        return [(layer.branch_keys, layer.branch_values) for layer in self.cache.layers]

    def with_slots(self, slots: list[tuple[jax.Array, jax.Array]]) -> "Track":
        """Returns the track with other keys and values of the branches' own frames."""
        pairs = zip(self.cache.layers, slots, strict=True)
        layers = tuple(layer.replace(branch_keys=keys, branch_values=values) for layer, (keys, values) in pairs)
        return self.after(self.cache.replace(layers=layers))
