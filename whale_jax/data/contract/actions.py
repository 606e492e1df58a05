"""The meaning of each dimension of an action, and of each column of the robot's measured state."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError

KINDS = ("delta", "absolute", "gripper")
OPENS = ("", "low", "high")
RANGES = ("limits", "quantiles")

METRES = {"m": 1.0, "cm": 0.01, "mm": 0.001}
RADIANS = {"rad": 1.0, "deg": np.pi / 180}

_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The action contract of a data set and of every checkpoint trained on it.

    Attributes:
      names, units: one string per dimension.
      kinds: "delta", "absolute" or "gripper" per dimension.
      low, high: the range of each dimension in the robot's own units.
      rate_hz: actions per second.
      frame: what deltas are relative to, such as "base" or "tool"; "" if unknown.
      opens: the end of a gripper's range at which it is open, "low" or "high"; "" if unknown.
      range_is: "limits" if no action exceeds the range; "quantiles" if most actions lie in it and the others are
        clipped.

    Raises:
      WhaleError: the fields disagree with each other.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rate_hz: float
    frame: str = ""
    opens: str = ""
    range_is: str = "limits"

    def __post_init__(self):
        for field in ("names", "kinds", "units"):
            object.__setattr__(self, field, tuple(str(v) for v in getattr(self, field)))
        for field in ("low", "high"):
            object.__setattr__(self, field, tuple(float(v) for v in getattr(self, field)))
        lengths = {f: len(getattr(self, f)) for f in ("names", "kinds", "units", "low", "high")}
        if len(set(lengths.values())) != 1 or not self.names:
            raise WhaleError(f"An action spec needs the same number (>= 1) of each field, not {lengths}.")
        for name, kind, low, high in zip(self.names, self.kinds, self.low, self.high, strict=True):
            if kind not in KINDS:
                raise WhaleError(f"Action {name!r} has kind {kind!r}; valid kinds: {', '.join(KINDS)}.")
            if not (np.isfinite([low, high]).all() and low < high):
                raise WhaleError(f"Action {name!r} has the range {low} to {high}; low must be below high.")
        if self.range_is not in RANGES:
            raise WhaleError(f"The range of actions is {self.range_is!r}; valid: {', '.join(RANGES)}.")
        if self.opens not in OPENS:
            raise WhaleError(f"A gripper opens at the end {self.opens!r} of its range; valid: low, high.")
        if not self.rate_hz > 0:
            raise WhaleError(f"An action rate of {self.rate_hz} Hz is not positive.")

    @property
    def dim(self) -> int:
        """A, the number of dimensions."""
        return len(self.names)

    def normalise(self, actions):
        """Maps low..high to -1..1, and clips what lies outside if the range is quantiles.

        Args:
          actions: (..., A) NumPy or JAX array in robot units.
        """
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        normal = (actions - low) * (2.0 / (high - low)) - 1.0
        return normal.clip(-1.0, 1.0) if self.range_is == "quantiles" else normal

    def denormalise(self, actions):
        """Maps -1..1 to low..high, the inverse of `normalise` within the range."""
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        return (actions + 1.0) * ((high - low) / 2.0) + low

    def validate(self, actions: np.ndarray, where: str = "the actions") -> np.ndarray:
        """Returns the actions (..., L, A) unchanged if they fit this spec.

        Raises:
          WhaleError: the array has another width, a value is not finite, or a value is outside limits by more than
            1e-4. The message names the dimension, the step and `where`.
        """
        actions = np.asarray(actions)
        if actions.ndim < 1 or actions.shape[-1] != self.dim:
            raise WhaleError(
                f"{where}: actions have shape {actions.shape}, but this robot's have {self.dim} dimensions "
                f"({', '.join(self.names)})."
            )
        steps = actions.reshape(-1, self.dim)
        finite = np.isfinite(steps)
        low, high = np.array(self.low), np.array(self.high)
        inside = (steps >= low - _TOLERANCE) & (steps <= high + _TOLERANCE) | (self.range_is == "quantiles")
        bad = np.argwhere(~(finite & inside))
        if len(bad):
            step, d = map(int, bad[0])
            value = steps[step, d]
            problem = f"is {value:.6g}, outside {self.low[d]:g} to {self.high[d]:g} (unit: {self.units[d]})"
            if not np.isfinite(value):
                problem = f"is not finite ({value})"
            raise WhaleError(
                f"{where}: action {self.names[d]!r} (dimension {d}) at step {step} {problem}; "
                f"{len(bad)} such value(s) in all. Clip or correct the recording, or widen the action spec."
            )
        return actions

    def check_same(self, other: "ActionSpec", where: str) -> None:
        """Raises WhaleError for the first field in which `other`, the spec of `where`, differs from this one."""
        if other.dim != self.dim:
            raise WhaleError(
                f"{where} has actions of {other.dim} dimensions ({', '.join(other.names)}), and the checkpoint's have "
                f"{self.dim} dimensions ({', '.join(self.names)}). Choose recordings of the same robot."
            )
        for field, value in self.to_json().items():
            theirs = other.to_json()[field]
            if theirs != value and "" not in (theirs, value):
                raise WhaleError(
                    f"{where} and the checkpoint disagree on what an action means: {field} {theirs} there and {value} "
                    "in training. Choose recordings made as the checkpoint's were, or a checkpoint trained on these."
                )

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dictionary that json can write."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ActionSpec":
        """Returns the spec that `to_json` wrote.

        Raises:
          WhaleError: a field is unknown, or one without a default is missing.
        """
        fields = {f.name: f.default is dataclasses.MISSING for f in dataclasses.fields(cls)}
        wrong = sorted((set(data) - set(fields)) | {name for name, needed in fields.items() if needed} - set(data))
        if wrong:
            raise WhaleError(f"This action spec has missing or unknown fields: {', '.join(wrong)}.")
        return cls(**data)


@dataclasses.dataclass(frozen=True)
class StateSpec:
    """The meaning of the columns of an episode's `state`: a name and a unit for each.

    A column with the name of an action measures what that action moves. This is the position that a delta changes, or
    the opening of a gripper (1 open, 0 closed).

    Raises:
      WhaleError: the fields disagree with each other.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self):
        for field in ("names", "units"):
            object.__setattr__(self, field, tuple(str(v) for v in getattr(self, field)))
        if len(self.names) != len(self.units) or len(set(self.names)) != len(self.names):
            raise WhaleError(f"A state needs one unit for each of its names, which differ: {self.names}, {self.units}.")

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dictionary that json can write."""
        return {"names": list(self.names), "units": list(self.units)}


def statistics(columns: Iterable[np.ndarray]) -> dict[str, Any]:
    """Returns mean, std, min, max, q01 and q99 of each of A columns (N,), and N as `transitions`, ready for JSON.

    It takes one column at a time, so that the columns of a million episodes fit into memory.
    """
    rows, count = [], 0
    for column in columns:
        values = (column.mean(dtype=np.float64), column.std(dtype=np.float64), column.min(), column.max())
        rows.append((*values, *np.quantile(column, (0.01, 0.99))))
        count = len(column)
    names = ("mean", "std", "min", "max", "q01", "q99")
    return dict(zip(names, np.array(rows, np.float64).T.tolist(), strict=True)) | {"transitions": count}


def any_spec(dim: int) -> ActionSpec:
    """Returns an action contract of `dim` dimensions, for code to which its meaning does not matter."""
    return ActionSpec(("a",) * dim, ("delta",) * dim, ("",) * dim, (-1.0,) * dim, (1.0,) * dim, 1.0)
