"""Settings of offline model-based reinforcement learning (docs/method.md §13)."""

import dataclasses
from collections.abc import Mapping

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.settings import Settings, check_least, check_one_of
from whale_jax.control.drq import DrqSettings
from whale_jax.data.metaworld.simulator import check_names
from whale_jax.imagination.dream import CONTEXT
from whale_jax.imagination.uncertainty.estimators import ESTIMATORS, check_uncertainty

LAMBDA, SHARE = "lambda", "share"
UNITS = {LAMBDA: "λ", SHARE: "share"}  # what penalties are, and what tables call it
MOST = 10.0  # greatest share; a weight of the usual ones for lambda is hardly meant as a share
PUBLISHED = ("retracing", "entropy", "ensemble", "none", "offline")


def methods() -> tuple[str, ...]:
    """Returns how a policy can be trained: penalising an uncertainty, without a penalty, or without imagination."""
    return (*ESTIMATORS, "none", "offline")


@dataclasses.dataclass(frozen=True)
class RolloutSettings(Settings):
    """How transitions are imagined."""

    context: int = CONTEXT  # given frames at the start of every rollout
    horizon: int = 4  # imagined frames after them
    starts: int = 256  # rollouts made at a time
    every: int = 1000  # updates between two rounds of rollouts
    capacity: int = 100_000  # most imagined transitions kept, the newest ones
    temperature: float = 0.0  # of token sampling

    @property
    def length(self) -> int:
        """The number of actions in a rollout, those between the given frames too."""
        return self.context - 1 + self.horizon

    def __post_init__(self):
        check_least(self, context=1, horizon=1, starts=1, every=1, temperature=0)
        if self.capacity < self.starts * self.horizon:
            raise WhaleError(
                f"capacity {self.capacity} does not hold the {self.starts} rollouts of {self.horizon} steps that are "
                "made at a time; raise it, or lower starts."
            )


@dataclasses.dataclass(frozen=True)
class TrialSettings(Settings):
    """How a policy is tried in the simulator."""

    every: int = 2000  # updates between two trials
    episodes: int = 20  # episodes per trial
    steps: int = 100  # most steps of an episode
    compared: int = 50  # first steps over which its return is compared with the imagined one
    seed: int = 0  # seed of the episodes' initial states

    def __post_init__(self):
        check_least(self, every=1, episodes=1, compared=1, steps=self.compared, seed=0)


@dataclasses.dataclass(frozen=True)
class ProbeSettings(Settings):
    """The exploit probe: searches for policies in the model alone, one per penalty weight and seed.

    Its task is the first of the study.
    """

    penalties: tuple[float, ...] = ()  # weights to sweep; () leaves the probe out
    method: str = "retracing"  # the penalised uncertainty
    seeds: tuple[int, ...] = (0,)  # seeds of the policies
    warmup: int = 2000  # updates, on recorded transitions alone, of the policy that a search begins with
    updates: int = 15  # updates of a search
    every: int = 3  # updates between two trials
    directions: int = 8  # pairs of candidates per update
    starts: int = 4  # recorded beginnings from which each candidate acts
    horizon: int = 16  # imagined steps whose return the search maximises
    deviation: float = 0.3  # deviation of candidates' actions from the policy's, before the tanh
    rate: float = 0.2  # step size of an update

    def __post_init__(self):
        check_one_of(self, ESTIMATORS, "method")
        check_least(self, every=1, updates=1, directions=1, starts=1, horizon=1, warmup=0)
        if any(not 0 <= penalty < float("inf") for penalty in self.penalties):
            raise WhaleError(f"penalties is {self.penalties}; weights are numbers from 0 up.")
        for name in ("penalties", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise WhaleError(f"{name} is {getattr(self, name)}; give none twice.")
        if self.updates % self.every:
            raise WhaleError(f"updates is {self.updates}; make it a multiple of every, which is {self.every}.")
        if not self.deviation > 0 or not self.rate > 0:
            raise WhaleError(f"deviation and rate are above 0, not {self.deviation} and {self.rate}.")


@dataclasses.dataclass(frozen=True)
class ControlSettings(Settings):
    """Settings of one study: every task, with every method and every seed."""

    tasks: tuple[str, ...]  # tasks of Meta-World
    methods: tuple[str, ...] = PUBLISHED  # see `methods`
    seeds: tuple[int, ...] = (0, 1, 2)  # seeds of the learners
    updates: int = 100_000  # updates of each run
    generated: float = 0.5  # share of imagined transitions in a batch
    # Lambda of each uncertainty: a reward is the model's prediction minus lambda times the uncertainty.
    penalties: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {name: ESTIMATORS[name].penalty for name in PUBLISHED if name in ESTIMATORS}
    )
    # What penalties and probe.penalties are: "lambda", or the "share" of the deviation of recorded rewards that the
    # deviation of lambda times the uncertainty is to be, see `whale_jax.control.weights`.
    penalty_unit: str = LAMBDA
    # What each uncertainty stands for: its name, or one with settings, such as "retracing:steps=1-2-3:starts=any".
    uncertainties: Mapping[str, str] = dataclasses.field(default_factory=lambda: {name: name for name in ESTIMATORS})
    # Factor of the rewards. If an action is held for several simulator steps, their rewards add up. One over the number
    # of steps gives the mean reward, for which the paper's penalties are meant.
    reward_scale: float = 1.0
    probe: ProbeSettings = ProbeSettings()
    learner: DrqSettings = DrqSettings()
    rollout: RolloutSettings = RolloutSettings()
    trial: TrialSettings = TrialSettings()

    def __post_init__(self):
        check_names(tasks=self.tasks)
        check_one_of(self, UNITS, "penalty_unit")
        for method in self.methods:
            if method not in methods():
                raise unknown_name("method", method, methods())
        for name in ("tasks", "methods", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise WhaleError(f"{name} is {values}; give one at least, and none twice.")
        for name, penalty in self.penalties.items():
            if name not in ESTIMATORS:
                raise unknown_name("uncertainty in penalties", name, ESTIMATORS)
            if not 0 <= penalty < float("inf"):
                raise WhaleError(f"penalties.{name} is {penalty}; a weight is a number from 0 up.")
        for name, text in self.uncertainties.items():
            check_uncertainty(text, ())
            if text.split(":")[0] != name:
                raise WhaleError(f"uncertainties.{name} is {text}; begin with {name}, whose settings it gives.")
        if missing := [m for m in self.methods if m in ESTIMATORS and m not in self.penalties]:
            raise WhaleError(f"penalties has no weight for {', '.join(missing)}; give one for each method.")
        shares = {name: self.penalties[name] for name in self.methods if name in self.penalties}
        shares |= {"the probe": max(self.probe.penalties, default=0)}
        if self.penalty_unit == SHARE and (large := {name: x for name, x in shares.items() if x > MOST}):
            raise WhaleError(
                f"With penalty_unit=share, penalties are shares of the rewards' deviation, at most {MOST:g}; "
                f"{large} are weights. Set control.penalties and control.probe.penalties to shares, such as 0.3."
            )
        if not 0 < self.generated <= 1:
            raise WhaleError(f"generated is {self.generated}; a share lies above 0 and at most at 1.")
        if self.learner.stack > self.rollout.context:
            raise WhaleError(
                f"learner.stack {self.learner.stack} is more than the rollout.context {self.rollout.context} frames "
                "that a rollout starts from; raise the latter."
            )
        whole = [("updates", self.updates, "trial.every", self.trial.every)]
        whole += [("trial.every", self.trial.every, "rollout.every", self.rollout.every)]
        whole += [("probe.warmup", self.probe.warmup, "rollout.every", self.rollout.every)] * bool(self.probe.penalties)
        for name, value, part, every in whole:
            if value % every or self.updates < 1:
                raise WhaleError(f"{name} {value} is no multiple of {part} {every}; runs are made of whole ones.")
