"""A robot's contract, written once in YAML: the meaning of each column of its recordings, and how to convert it."""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import check_file
from whale_jax.base.names import find_published
from whale_jax.data.contract.actions import KINDS, METRES, RADIANS

EXAMPLES = ("configs/robots/arx5.yaml", "configs/robots/franka.yaml", "configs/robots/widowx.yaml")
FACTORS = METRES | RADIANS | {"1": 1.0}
GRIPPER_UNIT = "1 open, 0 closed"
_FRAMES = ("base", "tool")
_ABSOLUTE = ("command", "state")
_ROTATIONS = ("euler", "quaternion")
_ROBOT = ("robot", "rate_hz", "action", "state", "camera", "frame", "absolute", "dimensions")
_DIMENSION = ("name", "from", "kind", "unit", "rotation", "range", "keep", "open", "closed", "state")
_DIMENSION += ("state_open", "state_closed")

Column = int | str


@dataclasses.dataclass(frozen=True)
class Dimension:
    """One dimension of the actions.

    Attributes:
      name: its name.
      kind: "delta", "absolute" or "gripper", as in the source.
      unit: unit in the source.
      source, state: columns of the source's action and of its measured state (() if there is none). This is one column,
        or the four of a quaternion x, y, z, w.
      angle: 0, 1 or 2 for the angle about x, y or z of a quaternion.
      range: (low, high) in metres and radians; None for quantiles of the training episodes.
      keep: keeps an absolute command as it is, for example for joints.
      opening, state_opening: (closed, open) values of a gripper's command and of its measurement.
    """

    name: str
    kind: str
    unit: str
    source: tuple[Column, ...]
    state: tuple[Column, ...] = ()
    angle: int = 0
    range: tuple[float, float] | None = None
    keep: bool = False
    opening: tuple[float, float] = (0.0, 1.0)
    state_opening: tuple[float, float] = (0.0, 1.0)

    @property
    def is_angle(self) -> bool:
        return self.unit in RADIANS

    @property
    def stored_kind(self) -> str:
        """The kind that is stored. A pose becomes the motion between poses, unless `keep` is set."""
        return "delta" if self.kind == "absolute" and not self.keep else self.kind

    @property
    def stored_unit(self) -> str:
        """The unit that is stored: metres, radians, or the opening of a gripper."""
        if self.kind == "gripper":
            return GRIPPER_UNIT
        return {"cm": "m", "mm": "m", "deg": "rad"}.get(self.unit, self.unit)


@dataclasses.dataclass(frozen=True)
class Robot:
    """The contract of a robot.

    Attributes:
      name, file: its name and its YAML file.
      rate_hz: actions per second to store; None for the source's own rate.
      action, state: keys of the source. Numbers and names in the contract mean columns of these, joined side by side.
      camera: the view to use; "" if there is only one.
      frame: what deltas are relative to, "base" or "tool".
      absolute: which poses become motion: consecutive commands ("command"), or measured poses ("state").
    """

    name: str
    file: str
    dimensions: tuple[Dimension, ...]
    rate_hz: float | None = None
    action: tuple[str, ...] = ("action",)
    state: tuple[str, ...] = ("observation.state",)
    camera: str = ""
    frame: str = "base"
    absolute: str = "command"

    @property
    def measured(self) -> tuple[Dimension, ...]:
        """The dimensions with a recorded state."""
        return tuple(d for d in self.dimensions if d.state)


def load_robot(path: Path | str) -> Robot:
    """Reads a robot's YAML file, given as a path or as the name of a published one.

    See configs/robots for annotated examples.

    Raises:
      WhaleError: the file does not exist or is not YAML, or a key or value is unknown or missing. The message names
        file, line and key.
    """
    path = find_published("robot file", str(path), "robots", ".yaml")
    try:
        check_file(path)
        text = path.read_text(encoding="utf-8-sig")
        return _robot(_Mapping(str(path), yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader), _ROBOT))
    except OSError as error:
        raise WhaleError(
            f"{path} cannot be read ({error.strerror}); start from one of {', '.join(EXAMPLES)}."
        ) from error
    except UnicodeDecodeError as error:
        raise WhaleError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise WhaleError(f"{where} is not valid YAML: {problem}.") from error


class _Mapping:
    """A mapping in the file, at the dotted place `path`, with the line of each value."""

    def __init__(
        self, file: str, data: Any, node: yaml.Node | None, known: tuple[str, ...], path: str = "", line: int = 0
    ):
        self.file, self.data, self._path, self._line = file, data, path, line
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        self.nodes = {key.value: value for key, value in pairs}
        self._lines = {key.value: key.start_mark.line for key, _ in pairs}
        names = [key.value for key, _ in pairs]
        for i, name in enumerate(names):
            self.require(name not in names[:i], name, "is there twice; leave one of them out")
        self.require(isinstance(data, dict), "", f"must be a mapping with the keys {', '.join(known)}")
        for key in data:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            self.require(key in known, key, f"is not a known key; {hint}")

    def require(self, holds: Any, key: Any, problem: str) -> None:
        """Raises WhaleError, naming the file, the line and the key ("" for the mapping itself), unless `holds`."""
        if not holds:
            place = ".".join(part for part in (self._path, str(key)) if part) or "the file"
            raise WhaleError(f"{self.file}, line {self._lines.get(str(key), self._line) + 1}: {place} {problem}.")

    def number(self, key: str) -> float | None:
        value = self.data.get(key)
        self.require(value is None or _is_number(value), key, f"must be a number, not {value!r}")
        return None if value is None else float(value)

    def one_of(self, key: str, valid: Iterable[str], default: str = "") -> str:
        value = self.data.get(key, default)
        self.require(str(value) in valid, key, f"is {value!r}; supported: {', '.join(valid)}")
        return str(value)

    def keys(self, key: str, default: str) -> tuple[str, ...]:
        value = self.data.get(key, default)
        value = value if isinstance(value, list) else [value]
        strings = value and all(isinstance(v, str) for v in value)
        self.require(strings, key, "must be a key of the source, or a list of them")
        return tuple(value)

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        self.require(isinstance(value, bool), key, "must be true or false")
        return value

    def columns(self, key: str, count: int) -> tuple[Column, ...]:
        value = self.data[key] if isinstance(self.data[key], list) else [self.data[key]]
        fit = len(value) == count and all(type(v) in (int, str) for v in value)
        self.require(fit, key, f"must be {'a column' if count == 1 else '4 columns, x y z w'}: number or name")
        return tuple(value)

    def range(self) -> tuple[float, float] | None:
        value = self.data.get("range")
        if value is None:
            return None
        numbers = isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))
        fits = numbers and value[0] < value[1]
        self.require(fits, "range", "must be [low, high] with low below high, in m or rad")
        return float(value[0]), float(value[1])

    def opening(self, prefix: str = "") -> tuple[float, float]:
        closed, opened = (self.number(f"{prefix}{end}") for end in ("closed", "open"))
        differ = None not in (closed, opened) and closed != opened
        self.require(differ, "", f"needs two different values {prefix}open: and {prefix}closed: for its gripper")
        return closed, opened


def _robot(whole: _Mapping) -> Robot:
    rows = whole.data.get("dimensions")
    listed = isinstance(rows, list) and rows
    whole.require(listed, "dimensions", "needs a list with one entry for each dimension of the actions")
    dimensions: list[Dimension] = []
    for i, (row, node) in enumerate(zip(rows, whole.nodes["dimensions"].value, strict=True)):
        dimensions += _dimensions(_Mapping(whole.file, row, node, _DIMENSION, f"dimensions.{i}", node.start_mark.line))
    names = [d.name for d in dimensions]
    for i, name in enumerate(names):
        whole.require(name not in names[:i], "dimensions", f"names {name!r} twice")
    robot = Robot(
        name=str(whole.data.get("robot") or Path(whole.file).stem),
        file=whole.file,
        dimensions=tuple(dimensions),
        rate_hz=whole.number("rate_hz"),
        action=whole.keys("action", "action"),
        state=whole.keys("state", "observation.state"),
        camera=str(whole.data.get("camera") or ""),
        frame=whole.one_of("frame", _FRAMES, "base"),
        absolute=whole.one_of("absolute", _ABSOLUTE, "command"),
    )
    whole.require(robot.rate_hz is None or robot.rate_hz > 0, "rate_hz", "must be positive")
    moved = [d for d in dimensions if d.kind == "absolute" and not d.keep]
    tool = "is tool, but absolute poses give deltas of the base; frame: tool is for recorded deltas"
    whole.require(not moved or robot.frame != "tool", "frame", tool)
    for d in moved:
        unmeasured = f"is state, so {d.name!r} needs a `state:` column to be measured by"
        whole.require(robot.absolute != "state" or d.state, "absolute", unmeasured)
    return robot


def _dimensions(row: _Mapping) -> list[Dimension]:
    """Returns the dimensions of one entry: three for a quaternion, else one."""
    for key in ("name", "from", "kind"):
        row.require(key in row.data, "", f"lacks the key {key!r}")
    kind = row.one_of("kind", KINDS)
    quaternion = row.one_of("rotation", _ROTATIONS, "euler") == "quaternion"
    given = row.data["name"]
    names = [str(n) for n in given] if isinstance(given, list) else [str(given)]
    one_or_three = "needs one name, or with rotation: quaternion three, as [roll, pitch, yaw]"
    row.require(len(names) == (3 if quaternion else 1), "name", one_or_three)
    row.require(given is not None and all(name.strip() for name in names), "name", "is empty; give it a name")
    unit, columns = "1" if kind == "gripper" else "rad", 4 if quaternion else 1
    if kind != "gripper" and not quaternion:
        row.require("unit" in row.data, "", "lacks the key 'unit'")
        unit = row.one_of("unit", FACTORS)
    settings = {
        "kind": kind,
        "unit": unit,
        "source": row.columns("from", columns),
        "state": row.columns("state", columns) if row.data.get("state") is not None else (),
        "range": row.range(),
        "keep": row.flag("keep"),
    }
    row.require(kind == "absolute" or not settings["keep"], "keep", "is for kind: absolute")
    if kind == "gripper":
        settings["opening"] = row.opening()
        has_own = "state_open" in row.data or "state_closed" in row.data
        settings["state_opening"] = row.opening("state_") if has_own else settings["opening"]
    return [Dimension(name=name, angle=i, **settings) for i, name in enumerate(names)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
