"""A world model loaded from a checkpoint directory: the object that users hold."""

import dataclasses
import functools
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import digest
from whale_jax.base.settings import of_kind
from whale_jax.base.workdir import Workdir
from whale_jax.data.contract.actions import ActionSpec
from whale_jax.data.store.store import EpisodeStore, open_store
from whale_jax.imagination.arguments import check_frames, check_sampling, check_start, checked_actions
from whale_jax.imagination.dream import Dream, Step, take_rollout, take_start
from whale_jax.imagination.future import Imagination
from whale_jax.imagination.policies import Checked, Normalised, Policy, begin_episode
from whale_jax.imagination.trust import Horizon, Trust, find_trusts
from whale_jax.imagination.uncertainty import learnt_error
from whale_jax.imagination.uncertainty.estimators import AUTO, ESTIMATORS, NONE, Estimator, resolve
from whale_jax.models.base import WorldModel
from whale_jax.models.registry import describe
from whale_jax.models.world import World, fingerprint
from whale_jax.nn import lpips
from whale_jax.nn.layers import to_bytes
from whale_jax.training.checkpoint import Meta
from whale_jax.training.sharding import Params, make_mesh, put_batch, replicated

USUAL = ("retracing", "entropy")  # the uncertainty that "auto" stands for, in order of preference


@functools.partial(jax.jit, static_argnames="world")
def _reconstruct(world: World, params: Params, frames: jax.Array) -> jax.Array:
    return to_bytes(world.model.reconstruct(params, frames))


@functools.partial(jax.jit, static_argnames="world")
def _behaviour(world: World, params: Params, frames: jax.Array, actions: jax.Array) -> jax.Array:
    return jnp.exp(world.model.behaviour(params, frames, actions))


@dataclasses.dataclass(frozen=True, eq=False)
class LoadedModel:
    """The model, heads, parameters and action spec of one checkpoint.

    Attributes:
      world: the model and its heads; params: the parameters of all components, by name.
      action_spec: the meaning of the actions; actions passed in and out are in its units.
      meta: the checkpoint's description of itself; source: its directory.
      trust_file: a calibration of its errors; None looks for one in the run.
      readout: of its learnt error; None looks for one beside the calibration or in the run.
    """

    world: World
    params: Params
    action_spec: ActionSpec
    meta: Meta
    source: Path
    trust_file: Path | None = None
    readout: Params | None = None

    def imagine(
        self,
        frames: np.ndarray,
        actions: np.ndarray | None = None,
        *,
        key: jax.Array | None = None,
        policy: Policy | None = None,
        horizon: int | None = None,
        uncertainty: str | Estimator | None = None,
        temperature: float = 0.0,
        task: str | None = None,
    ) -> Imagination:
        """Imagines what the camera would see.

        Args:
          frames: (B, C, H, W, 3) uint8, C >= 1 given frames.
          actions: (B, C - 1 + n, A) in the robot's own units; the first C - 1 lie between the given frames.
            With `policy`, give only those C - 1 (None if C is 1).
          key: a JAX key for sampling; not needed at temperature 0.
          policy: (frames (B, H, W, 3) uint8, key) -> actions (B, A), instead of given actions. A policy that remembers
            frames has a method `reset`, which is called before the first frame. A policy that is marked with
            `whale_jax.imagination.dream.in_jax` runs inside the compiled rollout.
          horizon: n; only with `policy`.
          uncertainty: "retracing", "entropy", "ensemble", "learnt_error", or "auto", see `estimator`; one of them with
            its settings, such as "retracing:steps=1-2-3:starts=any:accumulate=yes"; an estimator of
            `whale_jax.imagination.uncertainty`; or None or "none".
          temperature: of sampling; 0 takes the most likely values.
          task: whose calibrated errors bound those of these futures; None takes the largest bound of all tasks.

        Raises:
          WhaleError: shapes or types are wrong, actions are out of range or not finite, a component that imagining
            needs is not trained, the model lacks an ability that the uncertainty takes, or the task has no calibrated
            errors.
        """
        frames = np.asarray(frames)
        check_frames(frames, self.frame_size)
        actions = checked_actions(self.action_spec, frames, actions, policy, horizon)
        check_sampling(temperature, key)
        estimator, note = self.estimator(uncertainty)
        dream = self.dream(estimator, temperature)
        if key is None:
            if temperature > 0 or policy is not None:
                raise WhaleError("imagine() needs key=jax.random.key(...) to sample or to run a policy.")
            key = jax.random.key(0)
        # A window holds no frames before these.
        drop = max(0, frames.shape[1] - (self.world.settings.window or frames.shape[1]))
        frames, actions = frames[:, drop:], actions[:, drop:]
        params, given = self.params_for(dream), self._spread(frames, self._normal(actions))
        trust, untrusted = self._trusted(task, dream, frames.shape[1])
        if policy is None:
            taken = actions[:, frames.shape[1] - 1 :]
            steps = take_rollout(dream, params, *given, None, taken.shape[1], key)
        else:
            begin_episode(policy)
            steps, taken = self._acting(dream, params, given, policy, len(frames), horizon, key)
        steps = jax.tree.map(lambda x: np.asarray(x)[: len(frames)], steps)
        estimates = dict(steps.estimates)
        return Imagination(
            frames=steps.frames,
            actions=taken,
            read=steps.read,
            rewards=steps.read.get("reward"),
            own_rewards=steps.own_reward,
            uncertainty=estimates.pop("uncertainty", None),
            parts=estimates,
            notes=((note,) if note else ()) + (() if estimator is None else estimator.notes(steps.estimates)),
            trust=trust,
            untrusted=untrusted,
        )

    def dream(self, uncertainty: str | Estimator | None = None, temperature: float = 0.0, stack: int = 1) -> Dream:
        """Returns the dreams of this model, which read every trained head and the model's own reward if it has one.

        Args:
          uncertainty, temperature: as in `imagine`.
          stack: number of frames that a policy sees.

        Raises:
          WhaleError: the uncertainty does not exist or does not suit the robot.
        """
        estimator, _ = self.estimator(uncertainty)
        heads = tuple(name for name in self.world.heads_by_name if name in self.params)
        return Dream(self.world, estimator, temperature, heads, "own_reward" in self.world.model.abilities, stack)

    def estimator(self, uncertainty: str | Estimator | None) -> tuple[Estimator | None, str]:
        """Returns the estimator of an uncertainty, and why "auto" is not retracing.

        Args:
          uncertainty: as in `imagine`. "auto" is the first of `USUAL` that suits the model and the robot, if any does.

        Raises:
          WhaleError: the uncertainty does not exist or does not suit the robot.
        """
        if uncertainty is None or uncertainty == NONE:
            return None, ""
        if uncertainty != AUTO:
            return resolve(uncertainty, self.action_spec), ""
        why = ""
        for name in USUAL:
            try:
                estimator = resolve(name, self.action_spec)
                self.check_estimator(estimator)
                return estimator, why and f"The uncertainty is the {name}. {why}"
            except WhaleError as error:
                why = why or str(error)
        return None, f"No uncertainty is estimated. {why}"

    @property
    def abilities(self) -> frozenset[str]:
        """The model's optional methods and the trained components, for which suites and estimators may ask."""
        return self.world.model.abilities | set(self.params)

    @property
    def described(self) -> dict[str, Any]:
        """The settings of all networks, as a checkpoint describes them."""
        return describe(self.world)

    @property
    def window(self) -> int | None:
        """The number of frames that the model sees at once; None if its memory has no end."""
        return self.world.settings.window

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of frames in pixels."""
        return tuple(self.world.settings.frame_size)

    @property
    def num_frames(self) -> int:
        """T, frames of a training segment."""
        return self.world.settings.num_frames

    @property
    def history(self) -> int:
        """The number of frames that behaviour is inferred from."""
        return self.world.settings.history

    @property
    def workdir(self) -> Workdir:
        """The work directory of the run that made the checkpoint."""
        return Workdir.of(self.source)

    @property
    def episodes(self) -> Path:
        """The episode store of the run that made the checkpoint; for a mixture, its held-out episodes."""
        return self.workdir.episodes(self.meta.config.get("data", {}))

    def open_episodes(self, data: Path | str | None = None) -> EpisodeStore:
        """Opens an episode store; by default the one that `episodes` names.

        Raises:
          WhaleError: there is no whole store.
        """
        if data is not None:
            return open_store(data)
        episodes = self.episodes
        try:
            return open_store(episodes)
        except WhaleError as error:
            raise WhaleError(
                f"{error} {self.source} was trained on these episodes; name the directory where they are now, or "
                "others, with --data=DIR, in Python data=DIR."
            ) from error

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the names, shapes and values of all parameters."""
        return fingerprint(self.params)

    @functools.cached_property
    def imagining(self) -> str:
        """SHA-256 of what frames depend on: parameters, without those of heads and ensembles, and `decoding`."""
        parameters = fingerprint({name: self.params[name] for name in self.world.model.needed})
        return digest([parameters, self.decoding]) if self.decoding else parameters

    def estimating(self, estimator: Estimator | None) -> str | None:
        """Returns the SHA-256 of what an estimate depends on besides `imagining`: its settings and its component."""
        if estimator is None:
            return None
        needed = [self._component_digest(name) for name in estimator.needs if name != "lpips"]
        return digest([type(estimator).__qualname__, repr(estimator), *needed])

    def _component_digest(self, name: str) -> str:
        if name not in self._component_digests:
            values = self.learnt_error if name == learnt_error.NAME else self.params.get(name)
            self._component_digests[name] = fingerprint(values or {})
        return self._component_digests[name]

    @functools.cached_property
    def _component_digests(self) -> dict[str, str]:
        return {}

    @property
    def learnt_error(self) -> Params | None:
        """The readout of `whale_jax.imagination.uncertainty.learnt_error`; None if none was fitted.

        Raises:
          WhaleError: a file of the run cannot be read.
        """
        if self.readout is not None:
            return self.readout
        if not self._readouts:  # none yet; once found, files are not read again
            name = self.workdir.learnt_error.name
            beside = [] if self.trust_file is None else [self.trust_file.with_name(name)]
            places = [path for path in (*beside, *self.workdir.reported(name)) if path.is_file()]
            found = learnt_error.find_readout(places, self.acting) if places else None
            self._readouts.extend([] if found is None else [found])
        return self._readouts[0] if self._readouts else None

    @functools.cached_property
    def _readouts(self) -> list[Params]:
        return []

    @functools.cached_property
    def acting(self) -> str:
        """SHA-256 of `imagining` and of what actions mean."""
        return digest([self.imagining, self.action_spec.to_json()])

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings of decoding that are not the defaults, by dotted name."""
        found = of_kind(self.world.settings, "decoding")
        return {name: value for name, (value, default) in found.items() if value != default}

    @functools.cached_property
    def _calibrations(self) -> tuple[list[Trust], str]:
        """The calibrations of its errors, the newest first, and why there is none."""
        places = self.workdir.reported(self.workdir.trust.name) if self.trust_file is None else [self.trust_file]
        return find_trusts(places, lambda: self.imagining, self.action_spec)

    @property
    def untrusted(self) -> str:
        """Why none of its errors are calibrated; "" if some are."""
        return self._calibrations[1]

    def trust_horizon(self, task: str | None, dream: Dream, context: int) -> Horizon:
        """Returns how far dreams from `context` given frames can be trusted, by the errors that were calibrated.

        Raises:
          WhaleError: there is no calibration of these parameters, or of such dreams; see `Trust.horizon`.
        """
        trusts, why = self._calibrations
        if not trusts:
            raise WhaleError(why)
        alike = (trust for trust in trusts if (trust.context, trust.temperature) == (context, dream.temperature))
        trust = next(alike, trusts[0])
        return trust.horizon(task, self.estimating(dream.estimator), context, dream.temperature)

    def _trusted(self, task: str | None, dream: Dream, context: int) -> tuple[Horizon | None, str]:
        """Returns the trust horizon, or why there is none; raises WhaleError if a named task has none."""
        try:
            return self.trust_horizon(task, dream, context), ""
        except WhaleError as error:
            if task is not None:
                raise
            return None, str(error)

    @property
    def conditioning(self) -> str:
        """Whether behaviour conditions its predictions: "on", "switched off", or "trained without"."""
        return self.world.model.conditioning(self.params)

    def without_behaviour(self) -> "LoadedModel":
        """Returns the model with behaviour conditioning switched off: embeddings have no weight in its predictions.

        Raises:
          WhaleError: the model was trained without behaviour conditioning.
        """
        if self.conditioning == "trained without":
            raise WhaleError(f"{self.source} was trained without behaviour conditioning; there is none to switch off.")
        return dataclasses.replace(self, params=self.world.model.without_behaviour(self.params))

    def with_model(self, model: WorldModel) -> "LoadedModel":
        """Returns the same parameters in a model with other settings, such as `Whale.with_dynamics` returns."""
        return dataclasses.replace(self, world=dataclasses.replace(self.world, model=model))

    def with_head(self, name: str, other: "LoadedModel") -> "LoadedModel":
        """Returns the model with a head of another checkpoint in place of its own, so that one head scores both.

        Raises:
          WhaleError: the other checkpoint has no such trained head, or it reads other frames or actions.
        """
        if name not in other.world.heads_by_name or name not in other.params:
            raise WhaleError(f"{other.source} holds no trained head {name}; name a checkpoint that does.")
        if other.frame_size != self.frame_size:
            raise WhaleError(
                f"The head {name} of {other.source} reads frames of {other.frame_size[0]}x{other.frame_size[1]} pixels "
                f"and {self.source} imagines {self.frame_size[0]}x{self.frame_size[1]}; take one of that size."
            )
        self.action_spec.check_same(other.action_spec, str(other.source))
        heads = tuple(head for head in self.world.heads if head.name != name) + (other.world.heads_by_name[name],)
        world = dataclasses.replace(self.world, heads=heads)
        return dataclasses.replace(self, world=world, params={**self.params, name: other.params[name]})

    def embed(self, frames: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Returns how the policy behaves in segments: probabilities (B, G, K) of G variables.

        Args:
          frames: (B, T, H, W, 3) uint8.
          actions: (B, T, A) in the robot's own units.
        """
        return np.asarray(_behaviour(self.world, self.params, frames, self._normal(actions)))

    def check_episodes(self, store: EpisodeStore, context: int) -> None:
        """Raises WhaleError if dreams cannot begin with `context` frames of the store's episodes."""
        check_start(store, context, self.frame_size, self.window, str(self.source))
        self.action_spec.check_same(store.action_spec, str(store.root))

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Draws frames (B, T, H, W, 3) uint8 as the model can draw them, in segments of the training's length.

        Raises:
          WhaleError: the model does not encode and decode frames.
        """
        check_frames(np.asarray(frames), self.frame_size)
        if "reconstruct" not in self.abilities:
            raise WhaleError(f"A {self.world.model.name} does not encode and decode frames, so it reconstructs none.")
        size = self.num_frames
        parts = [frames[:, i : i + size] for i in range(0, frames.shape[1], size)]
        return np.concatenate([np.asarray(_reconstruct(self.world, self.params, part)) for part in parts], axis=1)

    def untrained(self, components: Collection[str]) -> list[str]:
        """Returns the components that imagining needs and that are not among `components`."""
        return [name for name in self.world.model.needed if name not in components]

    def check_estimator(self, estimator: Estimator | None) -> None:
        """Raises WhaleError if the model lacks an ability or a component that an estimator takes."""
        if estimator is None:
            return
        what = estimator.name or type(estimator).__name__
        if missing := sorted(estimator.requires - self.abilities):
            able = [name for name, row in ESTIMATORS.items() if row.requires <= self.abilities and name != what]
            raise WhaleError(
                f"{self.source} holds a {self.world.model.name}, which has no {' and no '.join(missing)}, and "
                f"the uncertainty {what} takes that; use {' or '.join(able) or 'none'}."
            )
        if "ensemble" in estimator.needs and "ensemble" not in self.params:
            raise WhaleError(
                f"{self.source} holds no ensemble; run its training again with --config.stages.ensemble.members=3 "
                'to add one, or use uncertainty="retracing", which needs none.'
            )
        if learnt_error.NAME in estimator.needs and self.learnt_error is None:
            raise WhaleError(
                f"{self.source} has no learnt error yet; fit one to its training episodes with `whale evaluate "
                "--checkpoint=DIR --suite=trust --evaluation.trust.estimates=entropy,learnt_error`, or use "
                'uncertainty="entropy", which needs none.'
            )
        estimator.check(self.world.model)

    def params_for(self, dream: Dream) -> Params:
        """Returns all parameters that dreams read, on every device of the mesh.

        Raises:
          WhaleError: a component that imagining or the estimator needs is not trained, or an ability is lacking.
        """
        if missing := self.untrained(self.params):
            raise WhaleError(f"{self.source} holds no trained {' and '.join(missing)} yet; finish its training first.")
        needed = self.needed_by(dream.estimator)
        more = {name: self._lpips if name == "lpips" else self._put(needed[name]) for name in needed}
        return self._spread_params | more

    def needed_by(self, estimator: Estimator | None) -> Params:
        """Returns the parameters that an estimator reads besides the model's own components, by name.

        Raises:
          WhaleError: see `check_estimator`.
        """
        self.check_estimator(estimator)
        make = {"lpips": lpips.weights, learnt_error.NAME: lambda: self.learnt_error}
        return {name: make[name]() for name in (() if estimator is None else estimator.needs) if name in make}

    def _put(self, params: Params) -> Params:
        return jax.device_put(dict(params), replicated(self._mesh))

    @functools.cached_property
    def _spread_params(self) -> Params:
        return self._put(self.params)

    @functools.cached_property
    def _lpips(self) -> Params:
        return self._put(lpips.weights())

    @functools.cached_property
    def _mesh(self):
        return make_mesh()

    def _spread(self, *arrays: np.ndarray) -> list[jax.Array]:
        """Shards arrays (B, …) by trajectory; the last one is repeated until B divides over the devices."""
        missing = -len(arrays[0]) % self._mesh.shape["data"]
        arrays = [np.concatenate([x, np.repeat(x[-1:], missing, axis=0)]) if missing else x for x in arrays]
        return put_batch(arrays, self._mesh)

    def _acting(
        self, dream: Dream, params, given, policy: Policy, count: int, horizon: int, key
    ) -> tuple[Step, np.ndarray]:
        """Imagines what a policy leads to. Returns the steps, and its actions (B, n, A) in the robot's own units."""
        if getattr(policy, "in_jax", False):
            steps = take_rollout(dream, params, *given, Normalised(policy, self.action_spec), horizon, key)
            taken = np.asarray(self.action_spec.denormalise(np.asarray(steps.actions)[:count]), np.float32)
            return steps, self.action_spec.validate(taken, "the policy's actions")
        checked = Checked(policy, self.action_spec, count, lambda action: self._spread(self._normal(action))[0])
        steps = dream.rollout(params, take_start(dream, params, *given), checked, horizon, key)
        return steps, np.stack(checked.taken, axis=1)

    def _normal(self, actions: np.ndarray) -> np.ndarray:
        return np.asarray(self.action_spec.normalise(actions), np.float32)
