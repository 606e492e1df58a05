"""A robot's contract, written once in YAML: the meaning of each column of its recordings, and how to convert it."""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

import yaml

from whale_jax.base.errors import WhaleError
from whale_jax.base.names import find_published
from whale_jax.data.contract.actions import METRES, RADIANS

EXAMPLES = ("configs/robots/arx5.yaml", "configs/robots/franka.yaml", "configs/robots/widowx.yaml")
FACTORS = METRES | RADIANS | {"1": 1.0}
GRIPPER_UNIT = "1 open, 0 closed"
_KINDS = ("delta", "absolute", "gripper")
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
        text = path.read_text(encoding="utf-8")
        return _Reader(str(path), yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)).robot()
    except OSError as error:
        raise WhaleError(
            f"{path} cannot be read ({error.strerror}); start from one of {', '.join(EXAMPLES)}."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise WhaleError(f"{where} is not valid YAML: {getattr(error, 'problem', None) or error}.") from error


class _Reader:
    """A parsed file, with the line of each value."""

    def __init__(self, file: str, data: Any, node: yaml.Node | None):
        self._file, self._data, self._node = file, data, node

    def robot(self) -> Robot:
        data = self._mapping(self._data, (), _ROBOT)
        rows = data.get("dimensions")
        if not isinstance(rows, list) or not rows:
            raise self._error(("dimensions",), "needs a list with one entry for each dimension of the actions")
        dimensions = tuple(d for i, row in enumerate(rows) for d in self._dimensions(row, ("dimensions", i)))
        names = [d.name for d in dimensions]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise self._error(("dimensions",), f"names {name!r} twice")
        robot = Robot(
            name=str(data.get("robot") or Path(self._file).stem),
            file=self._file,
            dimensions=dimensions,
            rate_hz=self._number(data, "rate_hz", ()),
            action=self._keys(data, "action", "action"),
            state=self._keys(data, "state", "observation.state"),
            camera=str(data.get("camera") or ""),
            frame=self._one_of(data, "frame", _FRAMES, (), "base"),
            absolute=self._one_of(data, "absolute", _ABSOLUTE, (), "command"),
        )
        self._check_whole(robot)
        return robot

    def _check_whole(self, robot: Robot) -> None:
        if robot.rate_hz is not None and robot.rate_hz <= 0:
            raise self._error(("rate_hz",), "must be positive")
        moved = [d for d in robot.dimensions if d.kind == "absolute" and not d.keep]
        if moved and robot.frame == "tool":
            raise self._error(
                ("frame",), "is tool, but absolute poses give deltas of the base; frame: tool is for recorded deltas"
            )
        for d in moved:
            if robot.absolute == "state" and not d.state:
                raise self._error(("absolute",), f"is state, so {d.name!r} needs a `state:` column to be measured by")

    def _dimensions(self, row: Any, path: tuple) -> list[Dimension]:
        """Returns the dimensions of one entry: three for a quaternion, else one."""
        row = self._mapping(row, path, _DIMENSION)
        for key in ("name", "from", "kind"):
            if key not in row:
                raise self._error(path, f"lacks the key {key!r}")
        kind = self._one_of(row, "kind", _KINDS, path)
        quaternion = self._one_of(row, "rotation", _ROTATIONS, path, "euler") == "quaternion"
        names = [str(n) for n in row["name"]] if isinstance(row["name"], list) else [str(row["name"])]
        if len(names) != (3 if quaternion else 1):
            raise self._error(
                (*path, "name"), "needs one name, or with rotation: quaternion three, as [roll, pitch, yaw]"
            )
        settings = {
            "kind": kind,
            "unit": self._unit(row, kind, quaternion, path),
            "source": self._columns(row, "from", 4 if quaternion else 1, path),
            "state": self._columns(row, "state", 4 if quaternion else 1, path) if row.get("state") is not None else (),
            "range": self._range(row, path),
            "keep": self._flag(row, "keep", path),
        }
        if settings["keep"] and kind != "absolute":
            raise self._error((*path, "keep"), "is for kind: absolute")
        if kind == "gripper":
            settings["opening"] = self._opening(row, "", path)
            has_own = "state_open" in row or "state_closed" in row
            settings["state_opening"] = self._opening(row, "state_", path) if has_own else settings["opening"]
        return [Dimension(name=name, angle=i, **settings) for i, name in enumerate(names)]

    def _unit(self, row: dict, kind: str, quaternion: bool, path: tuple) -> str:
        if kind == "gripper" or quaternion:
            return "1" if kind == "gripper" else "rad"
        if "unit" not in row:
            raise self._error(path, "lacks the key 'unit'")
        return self._one_of({"unit": str(row["unit"])}, "unit", tuple(FACTORS), path)

    def _opening(self, row: dict, prefix: str, path: tuple) -> tuple[float, float]:
        closed, opened = (self._number(row, f"{prefix}{end}", path) for end in ("closed", "open"))
        if closed is None or opened is None or closed == opened:
            raise self._error(path, f"needs two different values {prefix}open: and {prefix}closed: for its gripper")
        return closed, opened

    def _range(self, row: dict, path: tuple) -> tuple[float, float] | None:
        value = row.get("range")
        if value is None:
            return None
        numbers = isinstance(value, list) and len(value) == 2 and all(_is_number(v) for v in value)
        if not numbers or value[0] >= value[1]:
            raise self._error((*path, "range"), "must be [low, high] with low below high, in m or rad")
        return float(value[0]), float(value[1])

    def _columns(self, row: dict, key: str, count: int, path: tuple) -> tuple[Column, ...]:
        value = row[key] if isinstance(row[key], list) else [row[key]]
        if len(value) != count or not all(type(v) in (int, str) for v in value):
            raise self._error(
                (*path, key), f"must be {'a column' if count == 1 else '4 columns, x y z w'}: number or name"
            )
        return tuple(value)

    def _keys(self, data: dict, key: str, default: str) -> tuple[str, ...]:
        value = data.get(key, default)
        value = value if isinstance(value, list) else [value]
        if not value or not all(isinstance(v, str) for v in value):
            raise self._error((key,), "must be a key of the source, or a list of them")
        return tuple(value)

    def _flag(self, row: dict, key: str, path: tuple) -> bool:
        if not isinstance(row.get(key, False), bool):
            raise self._error((*path, key), "must be true or false")
        return row.get(key, False)

    def _number(self, data: dict, key: str, path: tuple) -> float | None:
        if data.get(key) is None:
            return None
        if not _is_number(data[key]):
            raise self._error((*path, key), f"must be a number, not {data[key]!r}")
        return float(data[key])

    def _one_of(self, data: dict, key: str, valid: tuple[str, ...], path: tuple, default: str | None = None) -> str:
        value = data.get(key, default)
        if value not in valid:
            raise self._error((*path, key), f"is {value!r}; supported: {', '.join(valid)}")
        return value

    def _mapping(self, data: Any, path: tuple, known: tuple[str, ...]) -> dict:
        if not isinstance(data, dict):
            raise self._error(path, f"must be a mapping with the keys {', '.join(known)}")
        for key in data:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise self._error((*path, key), f"is not a known key; {hint}")
        return data

    def _error(self, path: tuple, problem: str) -> WhaleError:
        line, node = 0, self._node
        for part in path:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == str(part)]
                if not found:
                    break
                line, node = found[0][0].start_mark.line, found[0][1]
            elif isinstance(node, yaml.SequenceNode):
                node = node.value[part]
                line = node.start_mark.line
        parts = ".".join(str(p) for p in path) or "the file"
        return WhaleError(f"{self._file}, line {line + 1}: {parts} {problem}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
