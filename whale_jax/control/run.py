"""One run of a study: a policy for one task by one method and seed, tried as it learns; resumes bit for bit."""

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

from whale_jax.control.offline import LearningState
from whale_jax.control.policy import save_policy
from whale_jax.control.program import Pace, Program
from whale_jax.control.programs import Programs
from whale_jax.control.replay import reaching_back, recorded
from whale_jax.control.search import SearchState
from whale_jax.control.settings import ControlSettings
from whale_jax.control.trial import Trial
from whale_jax.data.episode import Episode
from whale_jax.data.store import EpisodeStore
from whale_jax.errors import WhaleError
from whale_jax.evaluation.kept import digest, write
from whale_jax.imagination.world import WorldModel
from whale_jax.training.progress import say

FORMAT = "whale-control/1"
State = LearningState | SearchState


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: of its directory within the study's.
      task: of Meta-World; method: of `whale_jax.control.settings.METHODS`; seed: of the learner.
      penalty: lambda; generated: share of imagined transitions in a batch.
      search: whether the policy is searched for in the model alone (the probe), and not learnt.
    """

    name: str
    task: str
    method: str
    seed: int
    penalty: float
    generated: float
    search: bool = False


class Workshop:
    """What the runs on one task share: the programs, and the task's recorded transitions on the device.

    Raises:
      WhaleError: the task's data lack what the runs need.
    """

    def __init__(self, programs: Programs, store: EpisodeStore, task: str):
        self.programs, self.model, self.settings, self.task = programs, programs.model, programs.settings, task
        self.store = store.select(split="train", tasks=task)
        episodes = [self.store.read(i) for i in range(len(self.store))]
        self._check(episodes)
        self.replay = recorded(episodes, self.model.action_spec.normalise, self.settings.reward_scale)
        self.starts = reaching_back(self.replay, self.settings.rollout.context)

    def _check(self, episodes: list[Episode]) -> None:
        if not any(episode.rewards.any() for episode in episodes):
            raise WhaleError(
                f"The episodes of {self.task} in {self.store.root} have no rewards (all are 0), and a policy learns "
                "from them. Record or import them with rewards, or leave the task out of control.tasks."
            )
        context = self.settings.rollout.context
        if max(episode.length for episode in episodes) + 1 < context:
            raise WhaleError(
                f"No episode of {self.task} in {self.store.root} has the {context} frames that a rollout starts from; "
                "lower control.rollout.context."
            )

    def trial(self) -> Trial:
        """The task's simulator; to be closed."""
        config, spec = self.model.meta.config, self.model.action_spec
        return Trial(self.task, config["data"]["record"], spec, config["model"]["image_size"], self.settings.trial)


def check_model(model: WorldModel, settings: ControlSettings) -> None:
    """Raises WhaleError if a world model lacks what the runs of a study need."""
    if "reward" not in model.params:
        raise WhaleError(
            f"{model.source} holds no reward model, and imagined steps need rewards; train it with "
            "--config.stages.reward.steps=2000 or more."
        )
    used = (*settings.methods, *([settings.probe.method] if settings.probe.penalties else []))
    if "ensemble" in used and "ensemble" not in model.params:
        raise WhaleError(
            f"{model.source} holds no ensemble; train it with --config.stages.ensemble.members=3, or leave the method "
            "out: --config.control.methods=retracing,entropy,none,offline."
        )
    window = model.networks.settings.num_frames
    if settings.rollout.context > window:
        raise WhaleError(
            f"control.rollout.context is {settings.rollout.context} frames and the model's window holds {window}; "
            "lower it."
        )


class PolicyRun:
    """A run in its directory: what it has come to, and the steps that take it further."""

    def __init__(self, shop: Workshop, job: Job, directory: Path):
        self._shop, self._job, self._directory = shop, job, directory
        settings = shop.settings.to_dict()
        for study_wide in ("tasks", "methods", "seeds", "penalties", *(() if job.search else ("probe",))):
            del settings[study_wide]
        if job.search:
            del settings["probe"]["penalties"], settings["probe"]["seeds"]
        parts = [FORMAT, shop.model.fingerprint, shop.store.records, settings, dataclasses.asdict(job)]
        self._made_of = digest(parts)

    def result(self) -> dict[str, Any] | None:
        """What the run came to; None until it is finished.

        Raises:
          WhaleError: it was made with other settings, another model or other data.
        """
        path = self._directory / "result.json"
        return self._checked(json.loads(path.read_text())) if path.exists() else None

    def train(self) -> dict[str, Any]:
        """Learns and tries the policy, from its last trial on if it was stopped; the end is bit for bit the same."""
        job, programs = self._job, self._shop.programs
        found = (job.method, job.penalty) if job.search else (job.method, job.penalty, job.generated)
        program = (programs.search if job.search else programs.learning)(*found)
        (self._directory / "state").mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=1)
        with ocp.CheckpointManager((self._directory / "state").absolute(), options=options) as manager:
            state, history = self._restore(manager, program)
            with contextlib.closing(self._shop.trial()) as trial:
                state = self._go_on(program, trial, manager, state, history)
            manager.wait_until_finished()
        spec = self._shop.model.action_spec
        save_policy(self._directory / "policy", program.drq, program.policy(state), spec, job.task)
        result = {"made_of": self._made_of, "job": dataclasses.asdict(self._job), "history": history}
        write(self._directory / "result.json", json.dumps(result, indent=1).encode())
        shutil.rmtree(self._directory / "state")
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
        """The policy's success and returns in the simulator, and the returns that the model imagines for it."""
        started, policy = time.perf_counter(), program.policy(state)
        outcome = trial.run(lambda frames: act(policy, frames), self._shop.settings.learner.stack)
        params = dict(self._shop.model.params)
        imagined = program.imagined_return(params, policy, outcome.first, jax.random.key(0))
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
        # The next update gives the buffers away while they are being written.
        items = {"state": ocp.args.StandardSave(jax.tree.map(np.array, _plain(state)))}
        items["history"] = ocp.args.JsonSave({"made_of": self._made_of, "history": history})
        manager.save(history[-1]["updates"], args=ocp.args.Composite(**items))

    def _restore(self, manager, program: Program) -> tuple[State, list]:
        shop, step = self._shop, manager.latest_step()
        warmup = shop.settings.probe.warmup if step is None else 0
        state = shop.programs.begin(program, shop.replay, shop.starts, jax.random.key(self._job.seed), warmup)
        if step is None:
            return state, []
        saved = manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(_plain(state)), history=ocp.args.JsonRestore()),
        )
        history = self._checked(saved["history"])["history"]
        say(f"{self._job.name} goes on from update {step}")
        return _whole(state, saved["state"]), history

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        if found["made_of"] != self._made_of:
            raise WhaleError(
                f"{self._directory} was made with other settings of control, another model or other data; set them "
                "back, or use another --workdir, for runs made differently cannot stand in one table."
            )
        return found


def _plain(state: State) -> dict[str, Any]:
    """The state as nested dictionaries of arrays, as Orbax takes it."""
    return flax.serialization.to_state_dict(state.replace(key=jax.random.key_data(state.key)))


def _whole(like: State, saved: dict[str, Any]) -> State:
    """The inverse of `_plain`."""
    plain = like.replace(key=jax.random.key_data(like.key))
    state = flax.serialization.from_state_dict(plain, saved)
    return state.replace(key=jax.random.wrap_key_data(jnp.asarray(state.key)))
