"""The trust horizon: for how many steps a rollout stays close to what would really happen (docs/method.md §13).

The *running error* of a rollout is the largest error of its steps so far. Its *clock* is a number that does not fall
along it: the number of steps, or an uncertainty made to grow (`clock_of`). From clips whose errors are known, split
conformal prediction finds how far the clock may run while the running error of a new rollout stays below a tolerance
with probability 1 - alpha. That holds for rollouts of the policies, the task and the context that were calibrated.

Dimension keys: n calibration clips, H calibrated steps, B trajectories, s steps.
"""

import dataclasses
import json
import numbers
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.files import write
from whale_jax.data.contract.actions import ActionSpec

FORMAT = "whale-trust/2"
STEPS = "steps"  # the clock that counts steps


def least_clips(alpha: float) -> int:
    """Returns how many calibration clips a bound takes that errors exceed with probability `alpha`."""
    return int(np.ceil(1 / alpha - 1e-9)) - 1


def exceeding(count: int, alpha: float) -> int:
    """Returns m, the number of `count` calibration clips and a new one that may exceed the bound: (n + 1) alpha."""
    return int(np.floor((count + 1) * alpha + 1e-9))  # 29 % of 100 is 28.999… in floating point


def clock_of(estimates: np.ndarray) -> np.ndarray:
    """Returns the clock (B, s) of an uncertainty (B, s): its running maximum, times the root of the step's number."""
    return np.maximum.accumulate(estimates, axis=1) * np.sqrt(np.arange(1, estimates.shape[1] + 1))


def steps_of(shape: tuple[int, int]) -> np.ndarray:
    """Returns the clock (B, s) that counts steps, from 1."""
    return np.broadcast_to(np.arange(1.0, shape[1] + 1), shape)


def bound(errors: np.ndarray, alpha: float) -> np.ndarray:
    """Returns the bound on the running error by step, (H,), which does not fall.

    It is the k-th smallest running error of the n calibration clips (n, H), k = n + 1 - m, see `exceeding`. At each
    step the running error of a new rollout is at most as large with probability 1 - alpha.
    """
    return np.sort(np.maximum.accumulate(errors, axis=1), axis=0)[len(errors) - exceeding(len(errors), alpha)]


def limit(errors: np.ndarray, clocks: np.ndarray, tolerance: float, alpha: float) -> float:
    """Returns the reading of the clock from which a rollout is no longer trusted to stay below a tolerance.

    It is the m-th smallest reading at which a calibration clip first reaches the tolerance, infinite if fewer do. By
    `STEPS`, the steps before it are exactly those whose `bound` is below the tolerance. If m clips reach it at their
    first step, the limit is 0 by any clock: what is trusted then would be the m clips that are wrong.

    Args:
      errors, clocks: (n, H), of the calibration clips.
    """
    there, most = errors >= tolerance, exceeding(len(errors), alpha)
    if there[:, 0].sum() >= most:
        return 0.0
    first = clocks[np.arange(len(errors)), there.argmax(axis=1)]
    return float(np.sort(np.where(there.any(axis=1), first, np.inf))[most - 1])


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """The calibration clips of one task.

    Attributes:
      policies: the policy of each clip.
      errors: (n, H) float, of each step.
      estimates: uncertainties (n, H) of the same steps, by name.
    """

    policies: tuple[str, ...]
    errors: np.ndarray
    estimates: Mapping[str, np.ndarray]

    def check(self, task: str, alpha: float) -> None:
        """Raises WhaleError for figures that are not finite or below 0, of different clips, or of too few."""
        for name, values in {"error": self.errors, **self.estimates}.items():
            if values.ndim != 2 or values.shape != self.errors.shape or len(values) != len(self.policies):
                raise WhaleError(
                    f"The {name} of {task}'s calibration clips has the shape {values.shape}, not (clips, steps) of "
                    f"{len(self.policies)} clips; evaluate the trust suite again."
                )
            if not np.isfinite(values).all() or (values < 0).any():
                clip, step = np.argwhere(~(np.isfinite(values) & (values >= 0)))[0]
                raise WhaleError(
                    f"The {name} of {task}'s calibration clip {clip} is {values[clip, step]} at step {step + 1}, and a "
                    "bound takes finite numbers from 0 up; calibrate again, without an uncertainty that has others."
                )
        if not exceeding(count := len(self.errors), alpha):
            least = rounded_up(1 / (count + 1))
            raise WhaleError(
                f"{task} has {count} calibration clip{'s' * (count != 1)}, and a bound that holds in {percent(alpha)} "
                f"of rollouts takes {least_clips(alpha)}; evaluate more held-out episodes, or set alpha={least:g} for "
                f"a bound that holds in {percent(least)}."
            )

    def clock(self, name: str) -> np.ndarray:
        """Returns the clips' clock (n, H): `STEPS`, or that of an estimate."""
        return steps_of(self.errors.shape) if name == STEPS else clock_of(self.estimates[name])


@dataclasses.dataclass(frozen=True, eq=False)
class Trust:
    """The calibration of a model's errors, by task.

    Attributes:
      model: digest of what imagined the clips, `LoadedModel.imagining`.
      robot: the specification of its actions, as JSON; data: where the clips' episodes are.
      estimators: what made the estimates, `LoadedModel.estimating`, by name.
      context, temperature: how the clips were imagined.
      alpha: probability with which a rollout may exceed its bound.
      error: what the error is, in one sentence; split: of the clips' episodes.
      tasks: the clips of each task.

    Raises:
      WhaleError: no task or no share alpha is given; see also `Calibration.check`.
    """

    model: str
    robot: Mapping[str, Any]
    data: str
    estimators: Mapping[str, str]
    context: int
    temperature: float
    alpha: float
    error: str
    split: tuple[str, ...]
    tasks: Mapping[str, Calibration]

    def __post_init__(self):
        if not 0 < self.alpha < 1 or not self.tasks:
            raise WhaleError(f"a calibration has tasks and an alpha between 0 and 1, not {self.alpha} and {self.tasks}")
        for task, clips in self.tasks.items():
            clips.check(task, self.alpha)

    def horizon(self, task: str | None, estimator: str | None, context: int, temperature: float) -> "Horizon":
        """Returns the trust horizon of rollouts.

        Args:
          task: their task; None for the shortest horizon and the largest bound of all tasks.
          estimator: what estimates their uncertainty, `LoadedModel.estimating`. Its clock counts if this very one was
            calibrated, else the steps.
          context, temperature: how they are imagined.

        Raises:
          WhaleError: the task was not calibrated, or rollouts were imagined otherwise.
        """
        if task is not None and not isinstance(task, str):
            raise WhaleError(f"task is {task!r}; name one task, whose bound all trajectories have, or give None.")
        if task is not None and task not in self.tasks:
            raise unknown_name("calibrated task", task, self.tasks)
        for name, given in (("context", context), ("temperature", temperature)):
            if given != (wanted := getattr(self, name)):
                raise WhaleError(
                    f"The errors of this model were calibrated with the {name} {wanted:g}, so they say nothing about "
                    f"{name} {given:g}; take {wanted:g}, or calibrate again with --evaluation.trust.{name}={given:g} "
                    "and an --output of its own in the run, which leaves this calibration where it is."
                )
        chosen = self.tasks if task is None else {task: self.tasks[task]}
        known = (name for name, each in self.estimators.items() if each == estimator)
        return Horizon(self, chosen, next(known, STEPS))

    def to_json(self) -> dict[str, Any]:
        """Returns the calibration as JSON can hold it."""
        tasks = {
            task: {
                "policies": list(clips.policies),
                "errors": clips.errors.tolist(),
                "estimates": {name: values.tolist() for name, values in clips.estimates.items()},
            }
            for task, clips in self.tasks.items()
        }
        return {"format": FORMAT} | vars(self) | {"split": list(self.split), "tasks": tasks}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverts `to_json`; raises WhaleError for a calibration of another format or with impossible figures."""
        if values.get("format") != FORMAT:
            raise WhaleError(f"it has the format {values.get('format')!r}, and this version reads {FORMAT!r}")
        tasks = {
            task: Calibration(
                tuple(clips["policies"]),
                np.array(clips["errors"], float),
                {name: np.array(each, float) for name, each in clips["estimates"].items()},
            )
            for task, clips in values["tasks"].items()
        }
        fields = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        return cls(**fields | {"split": tuple(values["split"]), "tasks": tasks})


@dataclasses.dataclass(frozen=True, eq=False)
class Horizon:
    """The trust horizon of rollouts, by one clock.

    Attributes:
      trust: the calibration; tasks: those of its tasks that count.
      clock: the name of the clock: `STEPS`, or the uncertainty from which it is made.
    """

    trust: Trust
    tasks: Mapping[str, Calibration]
    clock: str

    def bound(self, count: int) -> np.ndarray:
        """Returns the error below which rollouts stay until each of `count` steps, (s,) float32.

        It does not fall, and is infinite beyond the calibrated steps. At each step it holds in 1 - alpha of rollouts.
        """
        every = []
        for clips in self.tasks.values():
            found = bound(clips.errors, self.trust.alpha)[:count]
            every.append(np.pad(found, (0, count - len(found)), constant_values=np.inf))
        return np.max(every, axis=0).astype(np.float32)

    def steps(self, tolerance: float, count: int, estimates: np.ndarray | None = None) -> np.ndarray:
        """Returns for how many steps rollouts are trusted to stay below a tolerance, (B,) int; (1,) by `STEPS`.

        In 1 - alpha of rollouts the error stays below it until then, if it was not chosen by the calibration clips.

        Args:
          tolerance: the error that is not to be reached.
          count: s, the number of steps.
          estimates: (B, s), the uncertainty from which the clock is made; not for `STEPS`.

        Raises:
          WhaleError: the tolerance is not above 0.
        """
        readings = steps_of((1, count)) if self.clock == STEPS else clock_of(estimates)
        end, last = self.limit(tolerance)
        return (readings[:, :last] < end).sum(axis=1)

    def limit(self, tolerance: float) -> tuple[float, int]:
        """Returns the reading of the clock from which rollouts are not trusted, see `limit`, and the last trusted step.

        Raises:
          WhaleError: the tolerance is not above 0.
        """
        check_tolerance(tolerance)
        every = self.tasks.values()
        ends = [limit(clips.errors, clips.clock(self.clock), tolerance, self.trust.alpha) for clips in every]
        return min(ends), min(clips.errors.shape[1] for clips in every)


def check_tolerance(tolerance: float) -> None:
    """Raises WhaleError unless a tolerance is a number above 0."""
    if not isinstance(tolerance, numbers.Real) or not tolerance > 0:
        raise WhaleError(f"An error's tolerance is a number above 0, not {tolerance!r}.")


def percent(alpha: float) -> str:
    """Returns the share of rollouts that a bound holds for, such as `90 %`."""
    return f"{100 * (1 - alpha):g} %"


def rounded_up(value: float) -> float:
    """Returns a number rounded up to three decimals."""
    return float(np.ceil(1000 * value - 1e-9) / 1000)


def write_trust(path: Path, trust: Trust) -> None:
    """Writes a calibration to a temporary file, then moves it into place."""
    write(path, json.dumps(trust.to_json()).encode())


def read_trust(path: Path) -> Trust:
    """Reads a calibration; raises WhaleError if there is none, or not a whole one."""
    try:
        return Trust.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, WhaleError) as error:
        raise WhaleError(
            f"{path} holds no calibration of a model's errors ({error}); write it anew with "
            "`whale evaluate --suite=trust`."
        ) from error


def find_trusts(paths: Iterable[Path], model: Callable[[], str], spec: ActionSpec) -> tuple[list[Trust], str]:
    """Returns the calibrations of one model, in the order of the paths, or why there is none.

    Args:
      model: returns its digest, `LoadedModel.imagining`, and is called only if there is a calibration.
      spec: of its actions.
    """
    said = "The errors of this model are not calibrated; run `whale evaluate --checkpoint=DIR --suite=trust`."
    found = []
    for path in paths:
        try:
            trust = read_trust(path)
        except WhaleError as error:
            said = str(error)
            continue
        if trust.model == model() and trust.robot == spec.to_json():
            found.append(trust)
        what = "for other actions" if trust.model == model() else "with other parameters or another decoding"
        said = (
            f"{path} was calibrated {what}, so it is not used; calibrate these with "
            "`whale evaluate --checkpoint=DIR --suite=trust`."
        )
    return found, "" if found else said
