"""Search for a policy in the model alone: the exploit probe, where no recorded data constrain the policy.

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
    """The state of a search between updates.

    Attributes:
      params: the policy's parameters, {"encoder", "actor"}.
      starts: (S,) int32, recorded rows where every candidate starts; key: the source of all randomness.
    """

    params: PolicyParams
    starts: jax.Array
    key: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Search(Program):
    """Evolution strategies (Salimans et al. 2017) on the actor's last layer, which maximise the imagined return.

    Candidates come in pairs on either side of the policy, and all act from the same recorded beginnings of episodes.
    Each candidate's value is its imagined return minus λ times its uncertainty. The policy moves towards the candidates
    of higher value. Differences are divided by the standard deviation of the values over the candidates (Mania et al.
    2018).
    """

    @property
    def pace(self) -> Pace:
        probe = self.settings.probe
        imagined = 2 * probe.directions * probe.starts * probe.horizon
        return Pace(probe.updates, probe.every, cycle=1, imagined=imagined)

    def init(self, key: jax.Array, policy: PolicyParams, replay: Replay) -> SearchState:
        """Returns the state before the first update of a learnt policy; starts are drawn from distinct episodes."""
        key, draw = jax.random.split(key)
        settings, first = self.settings, np.asarray(replay.first)
        rows = np.asarray(reaching_back(replay, settings.rollout.context))
        beginnings = rows[rows - first[rows] == settings.rollout.context - 1]
        starts = jax.random.choice(draw, jnp.asarray(beginnings, jnp.int32), (settings.probe.starts,), replace=False)
        return SearchState({name: policy[name] for name in ("encoder", "actor")}, starts, key)

    def policy(self, state: SearchState) -> PolicyParams:
        """Returns the parameters for `Drq.mean_action`."""
        return state.params

    def _cycle(self, params: Params, recorded: Replay, starts: jax.Array, state: SearchState):
        probe = self.settings.probe
        key, noise_key, act_key = jax.random.split(state.key, 3)
        layer = self.drq.last_layer(state.params)
        noise = _noise(noise_key, layer, probe.directions)
        # In mirrored pairs, the part common to all candidates cancels in the difference.
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
        """Sums scaled rewards and uncertainty over the horizon and averages them over the starts, (2 D,) each."""
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
    """Draws noise `count` times for every leaf; it has deviation 1 in the layer's output for inputs of order one."""
    leaves, tree = jax.tree.flatten(layer)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [_draw(k, (count, *x.shape)) for k, x in zip(keys, leaves, strict=True)])


def _draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    inputs = shape[1] if len(shape) > 2 else 1
    # Divided by the root of the number of inputs, so that outputs of any layer move equally far.
    return jax.random.normal(key, shape) / inputs**0.5
