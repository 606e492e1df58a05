"""A world model loaded from a checkpoint directory: the object that users hold."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.workdir import Workdir
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination import rollout as rollouts
from whale_jax.imagination.uncertainty.estimators import resolve
from whale_jax.models.whale.saved import find, networks_of
from whale_jax.models.whale.world_model import TRAINED, Networks
from whale_jax.nn import lpips
from whale_jax.training.checkpoint import Meta, fall_back, read_item, read_meta, steps_in
from whale_jax.training.sharding import Params, make_mesh, put_batch, replicated

Policy = Callable[[np.ndarray, jax.Array], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Imagination:
    """Imagined futures of B trajectories over n steps.

    Attributes:
      frames: (B, n, H, W, 3) uint8.
      actions: (B, n, A) float32, the actions taken, in the robot's own units.
      rewards: (B, n) float32; None if the checkpoint has no reward model.
      uncertainty: (B, n) float32, one value per step; None unless requested.
      parts: the estimates (B, n), by name, from which `uncertainty` is computed.
      notes: sentences that a reader of these figures should know.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None
    uncertainty: np.ndarray | None
    parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def accumulated(self) -> np.ndarray | None:
        """(B, n) float32, the uncertainty summed up to each step; the last column is that of the whole trajectory."""
        return None if self.uncertainty is None else np.cumsum(self.uncertainty, axis=1)


# Compiled once for all models with the same settings. Estimator and temperature are part of the program.
_STATIC = ("networks", "temperature", "estimator")
_rollout = jax.jit(rollouts.rollout, static_argnames=_STATIC)
_step = jax.jit(rollouts.step, static_argnames=_STATIC)
_start = jax.jit(rollouts.start, static_argnames=("networks", "estimator"))


@functools.partial(jax.jit, static_argnames="networks")
def _reconstruct(networks: Networks, params: Params, frames: jax.Array) -> jax.Array:
    return rollouts.to_bytes(networks.decode(params, networks.encode(params, frames)))


@functools.partial(jax.jit, static_argnames="networks")
def _reward(networks: Networks, params: Params, *transitions: jax.Array) -> jax.Array:
    return networks.predict_reward(params, *transitions)


@dataclasses.dataclass(frozen=True, eq=False)
class WorldModel:
    """The networks, parameters and action spec of one checkpoint.

    Attributes:
      networks: the modules; params: the parameters of all components, by name.
      action_spec: the meaning of the actions; actions passed in and out are in its units.
      meta: the checkpoint's description of itself; source: its directory.
    """

    networks: Networks
    params: Params
    action_spec: ActionSpec
    meta: Meta
    source: Path

    def imagine(
        self,
        frames: np.ndarray,
        actions: np.ndarray | None = None,
        *,
        key: jax.Array | None = None,
        policy: Policy | None = None,
        horizon: int | None = None,
        uncertainty: str | rollouts.Estimator | None = None,
        temperature: float = 0.0,
    ) -> Imagination:
        """Imagines what the camera would see.

        Args:
          frames: (B, C, H, W, 3) uint8, C >= 1 given frames.
          actions: (B, C - 1 + n, A) in the robot's own units; the first C - 1 lie between the given frames.
            With `policy`, give only those C - 1 (None if C is 1).
          key: a JAX key for sampling; not needed at temperature 0.
          policy: (frames (B, H, W, 3) uint8, key) -> actions (B, A), instead of given actions. A policy that remembers
            frames has a method `reset`, which is called before the first frame.
          horizon: n; only with `policy`.
          uncertainty: "retracing", "entropy" or "ensemble", an estimator of `whale_jax.imagination.uncertainty` with
            your own settings, or None.
          temperature: of token sampling; 0 takes the most likely tokens.

        Raises:
          WhaleError: shapes or types are wrong, actions are out of range or not finite, or dynamics are not trained.
        """
        frames, actions = np.asarray(frames), self._actions(frames, actions, policy, horizon)
        self._check_frames(frames)
        estimator = None if uncertainty is None else resolve(uncertainty, self.action_spec)
        params = self.params_for(estimator)
        if key is None:
            if temperature > 0 or policy is not None:
                raise WhaleError("imagine() needs key=jax.random.key(...) to sample tokens or to run a policy.")
            key = jax.random.key(0)
        # The window holds no frames before these.
        drop = max(0, frames.shape[1] - self.networks.settings.num_frames)
        frames, actions = frames[:, drop:], actions[:, drop:]
        if policy is None:
            imagined, estimates = self._open_loop(params, frames, actions, key, temperature, estimator)
        else:
            imagined, estimates, actions = self._closed_loop(
                params, frames, actions, policy, horizon, key, temperature, estimator
            )
        taken = actions[:, frames.shape[1] - 1 :]
        estimates = {name: np.asarray(values) for name, values in estimates.items()}
        return Imagination(
            frames=np.asarray(imagined),
            actions=taken,
            rewards=self._rewards(frames[:, -1:], imagined, taken),
            uncertainty=estimates.pop("uncertainty", None),
            parts=estimates,
            notes=_notes(estimator, estimates),
        )

    @property
    def workdir(self) -> Workdir:
        """The work directory of the run that made the checkpoint."""
        return Workdir.of(self.source)

    @property
    def episodes(self) -> Path:
        """The episode store of the run that made the checkpoint; for a mixture, its held-out episodes."""
        return self.workdir.episodes(self.meta.config.get("data", {}))

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, shapes and values of all parameters."""
        whole = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(self.params)):
            array = np.asarray(leaf)
            whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            whole.update(np.ascontiguousarray(array).data)
        return whole.hexdigest()

    @property
    def conditioning(self) -> str:
        """Whether behaviour conditions its predictions: "on", "switched off", or "trained without"."""
        if not self.networks.settings.dynamics.embedding_dim:
            return "trained without"
        weights = jax.tree.leaves(self.params.get("dynamics", {}).get("behaviour_out", ()))
        return "on" if any(np.asarray(x).any() for x in weights) else "switched off"

    def without_behaviour(self) -> "WorldModel":
        """Returns the model with behaviour conditioning switched off: embeddings have no weight in its predictions.

        Raises:
          WhaleError: the model was trained without behaviour conditioning.
        """
        if not self.networks.settings.dynamics.embedding_dim:
            raise WhaleError(f"{self.source} was trained without behaviour conditioning; there is none to switch off.")
        params = dict(self.params)
        for name in {"dynamics", "ensemble"} & set(params):
            silent = jax.tree.map(jnp.zeros_like, params[name]["behaviour_out"])
            params[name] = {**params[name], "behaviour_out": silent}
        return dataclasses.replace(self, params=params)

    def check_episodes(self, store: EpisodeStore, context: int) -> None:
        """Raises WhaleError if dreams cannot begin with `context` frames of the store's episodes."""
        size, window = self.networks.settings.frame_size, self.networks.settings.num_frames
        if context > window:
            raise WhaleError(
                f"context={context} is more than the {window} frames of this model's window; give at most those."
            )
        if tuple(store.image_size) != tuple(size):
            raise WhaleError(
                f"{store.root} has frames of {store.image_size[0]}x{store.image_size[1]} pixels, and {self.source} "
                f"takes {size[0]}x{size[1]}; give the episodes that it was trained on, or others of that size."
            )
        self.action_spec.check_same(store.action_spec, str(store.root))

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Encodes and decodes frames (B, T, H, W, 3) uint8 with the tokenizer, in windows of the model's length."""
        self._check_frames(np.asarray(frames))
        size = self.networks.settings.num_frames
        parts = [frames[:, i : i + size] for i in range(0, frames.shape[1], size)]
        return np.concatenate([np.asarray(_reconstruct(self.networks, self.params, part)) for part in parts], axis=1)

    def untrained(self, components: Collection[str]) -> list[str]:
        """Returns the components that imagining needs and that are not among `components`."""
        conditioned = ("behaviour",) if self.networks.settings.dynamics.embedding_dim else ()
        return [c for c in ("tokenizer", *conditioned, "dynamics") if c not in components]

    def params_for(self, estimator: rollouts.Estimator | None) -> Params:
        """Returns all parameters, with those that the estimator needs as well, on every device of the mesh.

        Raises:
          WhaleError: a component that imagining or the estimator needs is not trained.
        """
        if missing := self.untrained(self.params):
            raise WhaleError(f"{self.source} holds no trained {' and '.join(missing)} yet; finish its training first.")
        needs = () if estimator is None else estimator.needs
        if "ensemble" in needs and "ensemble" not in self.params:
            raise WhaleError(
                f"{self.source} holds no ensemble; run its training again with --config.stages.ensemble.members=3 "
                'to add one, or use uncertainty="retracing", which needs none.'
            )
        return self._spread_params | ({"lpips": self._lpips} if "lpips" in needs else {})

    @functools.cached_property
    def _spread_params(self) -> Params:
        return jax.device_put(dict(self.params), replicated(self._mesh))

    @functools.cached_property
    def _lpips(self) -> Params:
        return jax.device_put(lpips.weights(), replicated(self._mesh))

    @functools.cached_property
    def _mesh(self):
        return make_mesh()

    def _spread(self, *arrays: np.ndarray) -> list[jax.Array]:
        """Shards arrays (B, …) by trajectory; the last one is repeated until B divides over the devices."""
        missing = -len(arrays[0]) % self._mesh.shape["data"]
        arrays = [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x for x in arrays]
        return put_batch(arrays, self._mesh)

    def _open_loop(self, params, frames, actions, key, temperature, estimator):
        spread = self._spread(frames, self._normal(actions))
        outputs = _rollout(self.networks, params, *spread, key, temperature, estimator)
        return jax.tree.map(lambda x: np.asarray(x)[: len(frames)], outputs)

    def _closed_loop(self, params, frames, actions, policy, horizon, key, temperature, estimator):
        state = _start(self.networks, params, *self._spread(frames, self._normal(actions)), estimator)
        count, current, steps, taken = len(frames), frames[:, -1], [], []
        begin_episode(policy)
        for i in range(horizon):
            policy_key, token_key = jax.random.split(jax.random.fold_in(key, i))
            action = np.asarray(policy(current, policy_key), np.float32)
            if action.shape != (count, self.action_spec.dim):
                raise WhaleError(
                    f"The policy returned actions of shape {action.shape}, not {(count, self.action_spec.dim)}."
                )
            self.action_spec.validate(action, f"the policy's actions at step {i}")
            spread = self._spread(self._normal(action))
            state, outputs = _step(self.networks, params, state, *spread, token_key, temperature, estimator)
            outputs = jax.tree.map(lambda x: np.asarray(x)[:count], outputs)
            current = outputs[0]
            steps.append(outputs), taken.append(action)
        imagined, estimates = jax.tree.map(lambda *x: np.stack(x, 1), *steps)
        return imagined, estimates, np.concatenate([actions, np.stack(taken, 1)], 1)

    def _rewards(self, last, imagined, actions):
        if "reward" not in self.params:
            return None
        before = np.concatenate([last, np.asarray(imagined)[:, :-1]], axis=1)
        flat = [np.asarray(x).reshape(-1, *x.shape[2:]) for x in (before, self._normal(actions), imagined)]
        return np.asarray(_reward(self.networks, self.params, *flat)).reshape(actions.shape[:2])

    def _normal(self, actions: np.ndarray) -> np.ndarray:
        return np.asarray(self.action_spec.normalise(actions), np.float32)

    def _check_frames(self, frames: np.ndarray) -> None:
        height, width = self.networks.settings.tokenizer.image_size
        if frames.dtype != np.uint8 or frames.ndim != 5 or frames.shape[2:] != (height, width, 3):
            raise WhaleError(
                f"frames are {frames.dtype} {frames.shape}; this model takes uint8 (B, C, {height}, {width}, 3). "
                "Resize them to the size that it was trained on."
            )

    def _actions(self, frames, actions, policy, horizon) -> np.ndarray:
        past = np.shape(frames)[1] - 1 if np.ndim(frames) > 1 else 0
        if (policy is None) != (horizon is None):
            raise WhaleError("Give imagine() either actions alone, or policy= and horizon= together.")
        if horizon is not None and horizon < 1:
            raise WhaleError(f"horizon is {horizon}; imagine at least one frame.")
        if actions is None:
            actions = np.zeros((len(frames), 0, self.action_spec.dim), np.float32)
        if np.asarray(actions).dtype.kind not in "fiu":
            raise WhaleError(f"actions are {np.asarray(actions).dtype}; give float32 in the robot's own units.")
        actions = self.action_spec.validate(np.asarray(actions, np.float32), "the actions given to imagine()")
        wanted = past if policy is not None else max(past + 1, actions.shape[1] if actions.ndim == 3 else 0)
        if actions.ndim != 3 or actions.shape[:2] != (len(frames), wanted):
            raise WhaleError(
                f"actions have shape {actions.shape}; for {len(frames)} trajectories of {past + 1} frames they are "
                f"({len(frames)}, {past}{'' if policy is not None else ' + n'}, {self.action_spec.dim}) with n >= 1."
            )
        return actions


def begin_episode(policy: Policy) -> None:
    """Tells a policy that a new episode begins, if it remembers frames and so has a method `reset`."""
    if hasattr(policy, "reset"):
        policy.reset()


def _notes(estimator, estimates: dict[str, np.ndarray]) -> tuple[str, ...]:
    if "branches" not in estimates:
        return ()
    wanted, branches = len(estimator.steps), estimates["branches"].min(0)
    none, fewer = int((branches == 0).sum()), int(((branches > 0) & (branches < wanted)).sum())
    advice = f"give {max(estimator.steps) + 1} frames of context to have all {wanted} starts at every step."
    notes = []
    if none:
        notes.append(
            f"{none} of {len(branches)} steps had no earlier frame to retrace from: their uncertainty is the entropy "
            f"alone, which is of another scale; {advice}"
        )
    if fewer:
        notes.append(f"{fewer} of {len(branches)} steps were retraced from fewer than {wanted} starts; {advice}")
    return tuple(notes)


def load(directory: Path | str, dataset: str | None = None) -> WorldModel:
    """Loads the world model of a checkpoint.

    If the directory holds several steps, takes the newest one that can be read and says which ones it skipped.

    Args:
      directory: a work directory, or the directory of a stage or of a step.
      dataset: for a model trained on a mixture, the data set in whose units actions are given.

    Raises:
      WhaleError: there is no checkpoint, it cannot be read, or it was not trained on that data set.
    """
    stage_directory, newest = find(directory)
    asked = Path(directory).absolute() == stage_directory / str(newest)

    def read(step: int) -> tuple[Meta, Params]:
        return read_meta(stage_directory, step), read_item(stage_directory, step, "params")

    step, (meta, tree) = fall_back(stage_directory, [newest] if asked else steps_in(stage_directory), read)
    params = {name: tree[name] for name in TRAINED if name in tree}
    source = stage_directory / str(step)
    if dataset is not None and dataset not in meta.specs:
        raise unknown_name(f"data set of {source}", dataset, meta.specs)
    spec = ActionSpec.from_json(meta.action_spec if dataset is None else meta.specs[dataset])
    return WorldModel(networks_of(meta), jax.device_put(params), spec, meta, source)
