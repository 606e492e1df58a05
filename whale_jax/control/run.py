"""One run of a study: a policy for one task, method and seed, tried as it learns. A run resumes bit for bit."""

import contextlib
import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import digest, locked, write
from whale_jax.base.text import say
from whale_jax.control.acting import Pace, Program
from whale_jax.control.checks import recordings
from whale_jax.control.offline import LearningState
from whale_jax.control.policy import save_policy
from whale_jax.control.programs import Programs
from whale_jax.control.replay import reaching_back, recorded
from whale_jax.control.search import SearchState
from whale_jax.control.settings import LAMBDA, ControlSettings
from whale_jax.control.trial import Trial
from whale_jax.control.weights import weight_of
from whale_jax.data.store.store import EpisodeStore
from whale_jax.imagination.world import LoadedModel

FORMAT = "whale-control/2"
State = LearningState | SearchState


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: its directory below the study's.
      task: a task of Meta-World; method: one of `whale_jax.control.settings.methods`; seed: the learner's seed.
      penalty: lambda, or a share of the rewards, see `ControlSettings.penalty_unit`.
      generated: share of imagined transitions in a batch.
      search: whether the run searches the model alone for a policy (the probe) instead of learning one.
    """

    name: str
    task: str
    method: str
    seed: int
    penalty: float
    generated: float
    search: bool = False


class Workshop:
    """The parts that all runs on one task share: the programs, and the task's recorded transitions on the device."""

    def __init__(self, programs: Programs, store: EpisodeStore, task: str):
        self.programs, self.model, self.settings, self.task = programs, programs.model, programs.settings, task
        self.store = recordings(store, task)
        episodes = [self.store.read(i) for i in range(len(self.store))]
        self.replay = recorded(episodes, self.model.action_spec.normalise, self.settings.reward_scale)
        self.starts = reaching_back(self.replay, self.settings.rollout.context)
        self._weights: dict[str, float] = {}  # lambda of each method for a share of 1

    def weight(self, method: str, penalty: float) -> float:
        """Returns lambda of a method, from what the study calls its penalty."""
        if not penalty or self.settings.penalty_unit == LAMBDA:
            return penalty
        if method not in self._weights:
            self._weights[method] = weight_of(self.model, self.store, self.settings, method, 1.0)
        weight = penalty * self._weights[method]
        say(f"{self.task}: lambda of {method} is {weight:.4g}, for a share of {penalty:g}")
        return weight

    def trial(self) -> Trial:
        """Opens the task's simulator with the camera and action repeat of the recordings; the caller closes it."""
        spec, size = self.model.action_spec, self.store.image_size[0]
        return Trial(self.task, recorded_as(self.model, self.store), spec, size, self.settings.trial)


def recorded_as(model: LoadedModel, store: EpisodeStore) -> dict[str, Any]:
    """Returns the camera and the action repeat of a store; the model's own data fill in those it does not name."""
    own = model.meta.config["data"]["record"]
    return {name: store.info.get(name, own[name]) for name in ("camera", "action_repeat")}


def made_of(model: LoadedModel, store: EpisodeStore, settings: ControlSettings, job: Job) -> str:
    """Returns a digest of everything that a run's result depends on."""
    plain = settings.to_dict()
    for study_wide in ("tasks", "methods", "seeds", "penalties", *(() if job.search else ("probe",))):
        del plain[study_wide]
    if job.search:
        del plain["probe"]["penalties"], plain["probe"]["seeds"]
    if settings.penalty_unit == LAMBDA:  # as before there was a choice, so that earlier runs go on
        del plain["penalty_unit"]
    plain["uncertainties"] = {name: text for name, text in settings.uncertainties.items() if text != name}  # likewise
    data = [recorded_as(model, store), recordings(store, job.task).records]
    if model.decoding:  # likewise
        data.append(model.decoding)
    return digest([FORMAT, model.fingerprint, *data, plain, dataclasses.asdict(job)])


def result_of(directory: Path, made: str) -> dict[str, Any] | None:
    """Reads the result of the run in a directory; None until the run is finished.

    Raises:
      WhaleError: the run's digest is not `made`, see `made_of`.
    """
    path = directory / "result.json"
    return _checked(json.loads(path.read_text()), made, directory) if path.exists() else None


def _checked(found: dict[str, Any], made: str, directory: Path) -> dict[str, Any]:
    if found["made_of"] != made:
        raise WhaleError(
            f"{directory} was made with other settings of control, another model or other data; set them back, or use "
            "another --workdir, for runs made differently cannot stand in one table."
        )
    return found


class PolicyRun:
    """A run in its directory: its progress so far, and the steps that continue it."""

    def __init__(self, shop: Workshop, job: Job, directory: Path, made: str):
        """Takes the job, its directory, and its digest from `made_of`."""
        self._shop, self._job, self._directory, self._made_of = shop, job, directory, made

    def train(self) -> dict[str, Any]:
        """Learns and tries the policy.

        A stopped run resumes from its last trial and ends with bit for bit the same result.

        Raises:
          WhaleError: the run was begun with other settings, another model or other data, or another process runs it.
        """
        with locked(self._directory / ".lock"):
            result = result_of(self._directory, self._made_of) or self._train()
            shutil.rmtree(self._directory / "state", ignore_errors=True)
            return result

    def _train(self) -> dict[str, Any]:
        job, programs = self._job, self._shop.programs
        weight = self._shop.weight(job.method, job.penalty)
        if job.search:
            program = programs.search(job.method, weight)
        else:
            program = programs.learning(job.method, weight, job.generated)
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager((self._directory / "state").absolute(), options=options) as manager:
            state, history = self._restore(manager, program)
            with contextlib.closing(self._shop.trial()) as trial:
                state = self._go_on(program, trial, manager, state, history)
            manager.wait_until_finished()
        spec = self._shop.model.action_spec
        save_policy(self._directory / "policy", program.drq, program.policy(state), spec, job.task)
        result = {"made_of": self._made_of, "job": dataclasses.asdict(job), "lambda": weight, "history": history}
        write(self._directory / "result.json", json.dumps(result, indent=1).encode())
        return result

    def _go_on(self, program: Program, trial: Trial, manager, state: State, history: list) -> State:
        shop, pace = self._shop, program.pace
        params, act = shop.programs.params(program), jax.jit(program.drq.mean_action)
        if self._job.search and not history:
            history.append({"updates": 0} | self._try(program, trial, act, state))
        while (done := history[-1]["updates"] if history else 0) < pace.updates:
            started, scalars = time.perf_counter(), []
            for _ in range(pace.every // pace.cycle):
                state, metrics = program.cycle(params, shop.replay, shop.starts, state)
                scalars.append(metrics)
            scalars = jax.device_get(scalars)
            seconds = time.perf_counter() - started
            entry = {"updates": done + pace.every, "seconds": seconds, "updates_per_second": pace.every / seconds}
            if pace.imagined:
                entry["imagined_steps_per_second"] = pace.every // pace.cycle * pace.imagined / seconds
            entry |= {name: float(np.mean([x[name] for x in scalars])) for name in scalars[0]}
            entry |= self._try(program, trial, act, state)
            history.append(entry)
            self._tell(entry, pace)
            self._save(manager, state, history)
        return state

    def _try(self, program: Program, trial: Trial, act, state: State) -> dict[str, Any]:
        """Measures the policy's success and returns in the simulator, and its returns in the model."""
        started, policy = time.perf_counter(), program.policy(state)
        outcome = trial.run(lambda frames: act(policy, frames), self._shop.settings.learner.stack)
        imagined = program.imagined_return(self._shop.model.params, policy, outcome.first, jax.random.key(0))
        return {
            "success": outcome.success.tolist(),
            "return": outcome.returns.tolist(),
            "imagined_return": np.asarray(imagined).tolist(),
            "steps": outcome.steps.tolist(),
            "trial_seconds": time.perf_counter() - started,
        }

    def _tell(self, entry: dict[str, Any], pace: Pace) -> None:
        left = pace.updates - entry["updates"]
        minutes = left / pace.every * (entry["seconds"] + entry["trial_seconds"]) / 60
        imagined = entry.get("imagined_steps_per_second")
        say(
            f"{self._job.name}  {entry['updates']}/{pace.updates}  success {np.mean(entry['success']):.2f}  "
            f"return {np.mean(entry['return']):.0f}, imagined {np.mean(entry['imagined_return']):.0f}  |  "
            f"{entry['updates_per_second']:.1f} updates/s"
            f"{f', {imagined:.0f} imagined steps/s' if imagined else ''}  eta {minutes:.1f} min"
        )

    def _save(self, manager, state: State, history: list) -> None:
        # A copy: the next update donates the buffers while they are being written.
        items = {"state": ocp.args.StandardSave(jax.tree.map(np.array, _plain(state)))}
        items["history"] = ocp.args.JsonSave({"made_of": self._made_of, "history": history})
        manager.save(history[-1]["updates"], args=ocp.args.Composite(**items))

    def _restore(self, manager, program: Program) -> tuple[State, list]:
        shop, step = self._shop, manager.latest_step()
        warmup = shop.settings.probe.warmup if step is None else 0
        state = shop.programs.begin(program, shop.replay, shop.starts, jax.random.key(self._job.seed), warmup)
        if step is None:
            return state, []
        args = ocp.args.Composite(history=ocp.args.JsonRestore())
        history = _checked(manager.restore(step, args=args)["history"], self._made_of, self._directory)["history"]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(_plain(state)))
        saved = manager.restore(step, args=args)["state"]
        say(f"{self._job.name} goes on from update {step}")
        return _whole(state, saved), history


def _plain(state: State) -> dict[str, Any]:
    """Converts the state to nested dictionaries of arrays, as Orbax takes it."""
    return flax.serialization.to_state_dict(state.replace(key=jax.random.key_data(state.key)))


def _whole(like: State, saved: dict[str, Any]) -> State:
    """Inverts `_plain`."""
    plain = like.replace(key=jax.random.key_data(like.key))
    state = flax.serialization.from_state_dict(plain, saved)
    return state.replace(key=jax.random.wrap_key_data(jnp.asarray(state.key)))
