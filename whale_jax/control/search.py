"""Searching the model for a policy: the exploit probe, in which nothing recorded holds the policy.

Dimension keys: D directions, S starts, H horizon, A actions.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.control.acting import Pace, Program
from whale_jax.control.drq import Params as PolicyParams
from whale_jax.control.replay import Replay, reaching_back
from whale_jax.training.sharding import Params


@flax.struct.dataclass
class SearchState:
    """What a search carries on.

    Attributes:
      params: of the policy, {"encoder", "actor"}.
      starts: (S,) int32 rows of the recorded that every candidate starts from; key: of all that is random.
    """

    params: PolicyParams
    starts: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Search(Program):
    """Evolution strategies (Salimans et al. 2017) on the actor's last layer, for the return that the model imagines.

    Pairs of candidates lie on either side of the policy; all act from the same recorded beginnings of episodes, and
    the policy moves towards those whose imagined return less λ times its uncertainty is the higher, differences being
    measured in its standard deviation over the candidates (Mania et al. 2018).
    """

    @property
    def pace(self) -> Pace:
        probe = self.settings.probe
        imagined = 2 * probe.directions * probe.starts * probe.horizon
        return Pace(probe.updates, probe.every, cycle=1, imagined=imagined)

    def init(self, key: jax.Array, policy: PolicyParams, replay: Replay) -> SearchState:
        """The state before the first update of a policy that was learnt; starts are drawn from distinct episodes."""
        key, draw = jax.random.split(key)
        settings, first = self.settings, np.asarray(replay.first)
        rows = np.asarray(reaching_back(replay, settings.rollout.context))
        beginnings = rows[rows - first[rows] == settings.rollout.context - 1]
        starts = jax.random.choice(draw, jnp.asarray(beginnings, jnp.int32), (settings.probe.starts,), replace=False)
        return SearchState({name: policy[name] for name in ("encoder", "actor")}, starts, key)

    def policy(self, state: SearchState) -> PolicyParams:
        """Parameters for `Drq.mean_action`."""
        return state.params

    def _cycle(self, params: Params, recorded: Replay, starts: jax.Array, state: SearchState):
        probe = self.settings.probe
        key, noise_key, act_key = jax.random.split(state.key, 3)
        layer = self.drq.last_layer(state.params)
        noise = _noise(noise_key, layer, probe.directions)
        # Mirrored pairs: what all candidates have in common cancels in their difference.
        apart = jax.tree.map(lambda n: probe.deviation * jnp.concatenate([n, -n]), noise)
        layers = jax.tree.map(lambda x, n: x + n, layer, apart)
        rewards, uncertainty = self._imagine(params, recorded, state, layers, act_key)
        values = rewards - self.method.penalty * uncertainty
        ahead, behind = jnp.split(values, 2)
        weights = (ahead - behind) / (values.std() + 1e-6)
        layer = jax.tree.map(lambda x, n: x + probe.rate * jnp.tensordot(weights, n, 1) / len(n), layer, noise)
        metrics = {"objective": values, "imagined_reward": rewards, "uncertainty": uncertainty}
        metrics = jax.tree.map(lambda x: x.mean() / probe.horizon, metrics)
        return state.replace(params=self.drq.with_last_layer(state.params, layer), key=key), metrics

    def _imagine(self, params: Params, recorded: Replay, state: SearchState, layers: PolicyParams, key: jax.Array):
        """Sums of scaled rewards and of uncertainty over the horizon, (2 D,) each, means over the starts."""
        probe, candidates = self.settings.probe, 2 * self.settings.probe.directions

        def one(layer, seen):
            return self.drq.mean_action(self.drq.with_last_layer(state.params, layer), seen)

        def act(seen, key):
            shared = seen.reshape(candidates, -1, *seen.shape[1:])
            return jax.vmap(one)(layers, shared).reshape(len(seen), -1)

        rows = jnp.tile(state.starts, candidates)
        _, _, rewards, uncertainty = self.dream_from(params, recorded, rows, act, probe.horizon, key)
        return tuple(x.sum(1).reshape(candidates, -1).mean(1) for x in (rewards, uncertainty))


def _noise(key: jax.Array, layer: PolicyParams, count: int) -> PolicyParams:
    """`count` draws for every leaf, of deviation 1 in what the layer puts out for inputs of order one."""
    leaves, tree = jax.tree.flatten(layer)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [_draw(k, (count, *x.shape)) for k, x in zip(keys, leaves, strict=True)])


def _draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    inputs = shape[1] if len(shape) > 2 else 1
    # Smaller for a layer of more inputs, whose outputs so move by as much.
    return jax.random.normal(key, shape) / inputs**0.5
