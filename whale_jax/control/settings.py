"""Settings of offline model-based reinforcement learning (docs/method.md §13)."""

import dataclasses
from collections.abc import Mapping

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.settings import Settings
from whale_jax.control.drq import DrqSettings
from whale_jax.data.metaworld.simulator import check_names
from whale_jax.imagination.uncertainty.estimators import UNCERTAINTIES

# How a policy is trained: with a penalty on what the named uncertainty says, with none, or without imagination.
METHODS = (*UNCERTAINTIES, "none", "offline")


@dataclasses.dataclass(frozen=True)
class RolloutSettings(Settings):
    """How transitions are imagined.

    Attributes:
      context: given frames that every rollout starts from; horizon: imagined frames after them.
      starts: rollouts at a time; every: updates between two such times.
      capacity: newest imagined transitions that are kept.
      temperature: of token sampling.
    """

    context: int = 4
    horizon: int = 4
    starts: int = 256
    every: int = 1000
    capacity: int = 100_000
    temperature: float = 0.0

    def __post_init__(self):
        if min(self.context, self.horizon, self.starts, self.every) < 1:
            raise WhaleError("control.rollout.context, horizon, starts and every are at least 1.")
        if self.capacity < self.starts * self.horizon:
            raise WhaleError(
                f"control.rollout.capacity {self.capacity} does not hold the {self.starts} rollouts of {self.horizon} "
                "steps that are made at a time; raise it, or lower control.rollout.starts."
            )


@dataclasses.dataclass(frozen=True)
class TrialSettings(Settings):
    """How a policy is tried in the simulator.

    Attributes:
      every: updates between two trials; episodes: of each; steps: an episode has at most.
      compared: steps from its start over which its return is set beside the imagined one.
      seed: of the episodes' initial states.
    """

    every: int = 2000
    episodes: int = 20
    steps: int = 100
    compared: int = 50
    seed: int = 0

    def __post_init__(self):
        if min(self.every, self.episodes, self.steps, self.compared) < 1 or self.compared > self.steps:
            raise WhaleError(
                "control.trial.every, episodes, steps and compared are at least 1, and compared is at most steps."
            )


@dataclasses.dataclass(frozen=True)
class ProbeSettings(Settings):
    """The exploit probe: policies that are searched for in the model alone, by the weight of the penalty.

    Attributes:
      penalties: weights to sweep; none leaves the probe out. method: the uncertainty that they are of.
      seeds: of the policies. The task is the study's first.
      warmup: updates from recorded transitions alone, of the policy that a search begins with.
      updates: of a search; every: updates between two trials.
      directions: pairs of candidates of an update; starts: recorded beginnings that each of them acts from.
      horizon: steps whose imagined return is what is searched for.
      deviation: of candidates' actions from the policy's, before the tanh; rate: of an update.
    """

    penalties: tuple[float, ...] = ()
    method: str = UNCERTAINTIES[0]
    seeds: tuple[int, ...] = (0,)
    warmup: int = 2000
    updates: int = 15
    every: int = 3
    directions: int = 8
    starts: int = 4
    horizon: int = 16
    deviation: float = 0.3
    rate: float = 0.2

    def __post_init__(self):
        if self.method not in UNCERTAINTIES:
            raise unknown_name("uncertainty in control.probe.method", self.method, UNCERTAINTIES)
        if any(not 0 <= penalty < float("inf") for penalty in self.penalties):
            raise WhaleError(f"control.probe.penalties is {self.penalties}; weights are numbers from 0 up.")
        for name in ("penalties", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise WhaleError(f"control.probe.{name} is {getattr(self, name)}; give none twice.")
        if min(self.updates, self.every, self.directions, self.starts, self.horizon) < 1 or self.updates % self.every:
            raise WhaleError(
                "control.probe.updates, every, directions, starts and horizon are at least 1, and updates is a "
                "multiple of every."
            )
        if self.warmup < 0 or not self.deviation > 0 or not self.rate > 0:
            raise WhaleError("control.probe.deviation and rate are above 0, and warmup is not negative.")


@dataclasses.dataclass(frozen=True)
class ControlSettings(Settings):
    """One study: every task by every method by every seed.

    Attributes:
      tasks: Meta-World tasks; methods: of `METHODS`; seeds: of learners.
      updates: of each run.
      generated: share of imagined transitions in a batch.
      penalties: lambda of each uncertainty: a reward is what the model predicts less lambda times the uncertainty.
      reward_scale: what rewards are multiplied by. Where an action is held for several simulator steps their rewards
        add up; one over their number gives the mean that the paper's penalties are for.
    """

    tasks: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1, 2)
    updates: int = 100_000
    generated: float = 0.5
    penalties: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"retracing": 50.0, "entropy": 0.1, "ensemble": 5000.0}
    )
    reward_scale: float = 1.0
    probe: ProbeSettings = ProbeSettings()
    learner: DrqSettings = DrqSettings()
    rollout: RolloutSettings = RolloutSettings()
    trial: TrialSettings = TrialSettings()

    def __post_init__(self):
        check_names(tasks=self.tasks)
        for method in self.methods:
            if method not in METHODS:
                raise unknown_name("method in control.methods", method, METHODS)
        for name in ("tasks", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise WhaleError(f"control.{name} is {values}; give one at least, and none twice.")
        for name, penalty in self.penalties.items():
            if name not in UNCERTAINTIES:
                raise unknown_name("uncertainty in control.penalties", name, UNCERTAINTIES)
            if not 0 <= penalty < float("inf"):
                raise WhaleError(f"control.penalties.{name} is {penalty}; a weight is a number from 0 up.")
        if missing := [m for m in self.methods if m in UNCERTAINTIES and m not in self.penalties]:
            raise WhaleError(f"control.penalties has no weight for {', '.join(missing)}; give one for each method.")
        if not 0 < self.generated <= 1:
            raise WhaleError(f"control.generated is {self.generated}; a share lies above 0 and at most at 1.")
        if self.learner.stack > self.rollout.context:
            raise WhaleError(
                f"control.learner.stack {self.learner.stack} is more than the control.rollout.context "
                f"{self.rollout.context} frames that a rollout starts from; raise the latter."
            )
        if self.probe.penalties and self.probe.warmup % self.rollout.every:
            raise WhaleError(
                f"control.probe.warmup {self.probe.warmup} is no multiple of control.rollout.every "
                f"{self.rollout.every}; a run is made of whole ones."
            )
        if self.updates < 1 or self.updates % self.trial.every or self.trial.every % self.rollout.every:
            raise WhaleError(
                f"control.updates {self.updates} is no multiple of control.trial.every {self.trial.every}, or that is "
                f"none of control.rollout.every {self.rollout.every}; runs are made of whole ones."
            )
