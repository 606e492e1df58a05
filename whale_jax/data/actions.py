"""What each dimension of an action means."""

import dataclasses
from typing import Any

import numpy as np

from whale_jax.errors import WhaleError

KINDS = ("delta", "absolute", "gripper")

_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The action contract of a data set and of every checkpoint trained on it.

    names, kinds ("delta" | "absolute" | "gripper") and units: one string per dimension;
    low, high: the range of each dimension in the robot's own units; rate_hz: actions per second.
    Raises WhaleError when the fields disagree with each other.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rate_hz: float

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
        if not self.rate_hz > 0:
            raise WhaleError(f"An action rate of {self.rate_hz} Hz is not positive.")

    @property
    def dim(self) -> int:
        """A, the number of dimensions."""
        return len(self.names)

    def normalise(self, actions):
        """Affine map low..high -> -1..1; (..., A) numpy or jax array in the robot's units."""
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        return (actions - low) * (2.0 / (high - low)) - 1.0

    def denormalise(self, actions):
        """The inverse of normalise."""
        low, high = np.array(self.low, np.float32), np.array(self.high, np.float32)
        return (actions + 1.0) * ((high - low) / 2.0) + low

    def validate(self, actions: np.ndarray, where: str = "the actions") -> np.ndarray:
        """actions (..., L, A) unchanged; raises WhaleError naming dimension, step and `where` for an array of
        another width, a value that is not finite, or one outside low..high by more than 1e-4."""
        actions = np.asarray(actions)
        if actions.ndim < 1 or actions.shape[-1] != self.dim:
            raise WhaleError(
                f"{where}: actions have shape {actions.shape}, but this robot's have {self.dim} dimensions "
                f"({', '.join(self.names)})."
            )
        steps = actions.reshape(-1, self.dim)
        finite = np.isfinite(steps)
        low, high = np.array(self.low), np.array(self.high)
        inside = (steps >= low - _TOLERANCE) & (steps <= high + _TOLERANCE)
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
        """Raises WhaleError naming the first field in which `other`, the spec of `where`, is another."""
        if other.dim != self.dim:
            raise WhaleError(
                f"{where} has actions of {other.dim} dimensions ({', '.join(other.names)}), and the checkpoint's have "
                f"{self.dim} dimensions ({', '.join(self.names)}). Choose recordings of the same robot."
            )
        for field, value in self.to_json().items():
            theirs = other.to_json()[field]
            if theirs != value:
                raise WhaleError(
                    f"{where} and the checkpoint disagree on what an action means: {field} {theirs} there and {value} "
                    "in training. Choose recordings made as the checkpoint's were, or a checkpoint trained on these."
                )

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary that json can write."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ActionSpec":
        """The inverse of to_json; raises WhaleError when a field is missing or unknown."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if set(data) != fields:
            wrong = sorted(fields ^ set(data))
            raise WhaleError(f"This action spec has missing or unknown fields: {', '.join(wrong)}.")
        return cls(**data)


def any_spec(dim: int) -> ActionSpec:
    """An action contract of `dim` dimensions for where none matters."""
    return ActionSpec(("a",) * dim, ("delta",) * dim, ("",) * dim, (-1.0,) * dim, (1.0,) * dim, 1.0)
