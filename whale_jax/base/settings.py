"""Settings: frozen dataclasses whose fields hold the only defaults and which survive a round trip through JSON."""

import dataclasses
import json
import math
import numbers
import re
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Self

from whale_jax.base.errors import WhaleError, unknown_name


class Settings:
    """Base class of all settings: a frozen dataclass that converts from and to plain dictionaries.

    Attributes:
      retired: former fields, each with the words that follow its name in the error for its use.
    """

    retired: ClassVar[Mapping[str, str]] = {}

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values (numbers, strings, booleans, lists, dictionaries)."""
        return dataclasses.asdict(self)

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns the default of every field that has one."""
        fields = [f for f in dataclasses.fields(cls) if f.init and not _required(f)]
        plain = {f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory() for f in fields}
        return {name: value.to_dict() if isinstance(value, Settings) else value for name, value in plain.items()}

    @classmethod
    def needed(cls) -> list[str]:
        """Returns the names of the fields without a default, whose values come from other settings."""
        return [field.name for field in dataclasses.fields(cls) if _required(field)]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], group: str = "") -> Self:
        """Builds the settings, including nested ones.

        Args:
          values: value of each field; a missing field takes its default.
          group: group of the config that the values belong to, for error messages.

        Raises:
          WhaleError: a key does not exist (with the nearest ones that do), a required key is missing, or a value has
            the wrong type or is refused by `__post_init__`.
        """
        hints, prefix = typing.get_type_hints(cls), f"{group}." if group else ""
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name in cls.retired:
                raise WhaleError(f"{prefix}{name} {cls.retired[name]}.")
            if name not in fields:
                kind = "config key" if group else f"{cls.__name__} field"
                raise unknown_name(kind, prefix + name, [prefix + field for field in fields])
        if missing := [prefix + name for name, field in fields.items() if name not in values and _required(field)]:
            raise WhaleError(f"{cls.__name__} needs a value for {', '.join(missing)}; add it to the config.")
        converted = {name: _convert(hints[name], value, prefix + name) for name, value in values.items()}
        try:
            return cls(**converted)
        except WhaleError as error:
            # A message that begins with a field's name then begins with the whole dotted key.
            joint = "." if re.match(r"\w*", str(error))[0] in fields else ": "
            raise WhaleError(f"{group}{joint}{error}" if group else str(error)) from None


def objective(default: Any) -> Any:
    """Declares a field that only a loss reads, so that it may differ from a checkpoint's."""
    return dataclasses.field(default=default, metadata={"kind": "objective"})


def decoding(default: Any) -> Any:
    """Declares a field that only decoding reads, so that it may differ from a checkpoint's."""
    return dataclasses.field(default=default, metadata={"kind": "decoding"})


def execution(default: Any) -> Any:
    """Declares a field that changes how a network runs and no result, so that it may differ from a checkpoint's."""
    return dataclasses.field(default=default, metadata={"kind": "execution"})


def place(default: str = "") -> Any:
    """Declares a field that is a path, which is absolute in the config that a run keeps."""
    return dataclasses.field(default=default, metadata={"kind": "place"})


def places_by_name() -> Any:
    """Declares a field of paths by name, empty by default. One that leads to no file names something published."""
    return dataclasses.field(default_factory=dict, metadata={"kind": "place"})


def places(cls: type[Settings]) -> list[str]:
    """Returns the names of the fields that are paths."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata.get("kind") == "place"]


def inputs() -> Any:
    """Declares a field that only gives the size of inputs, which a fine-tuning may draw anew."""
    return dataclasses.field(metadata={"kind": "inputs"})


def architecture(settings: Settings, inputs: bool = True) -> tuple[dict[str, Any], set[str]]:
    """Returns what decides the meaning of a network's parameters, and what does not, by dotted name.

    Args:
      settings: settings of networks.
      inputs: whether the sizes of inputs count too.

    Returns:
      The values that decide, as JSON has them, and the names of all other fields.
    """
    free, values = set(), flat(json.loads(json.dumps(settings.to_dict())))

    def visit(node: Settings, prefix: str) -> None:
        for field in dataclasses.fields(node):
            value, kind = getattr(node, field.name), field.metadata.get("kind", "")
            if isinstance(value, Settings):
                visit(value, f"{prefix}{field.name}.")
            elif kind in ("objective", "decoding", "execution") or kind == "inputs" and not inputs:
                free.add(prefix + field.name)

    visit(settings, "")
    return {name: value for name, value in values.items() if name not in free}, free


def of_kind(settings: Settings, kind: str, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns the fields of a kind, such as "objective" or "decoding": value and default, by dotted name."""
    found = {}
    for field in dataclasses.fields(settings):
        name, value = prefix + field.name, getattr(settings, field.name)
        if isinstance(value, Settings):
            found |= of_kind(value, kind, f"{name}.")
        elif field.metadata.get("kind") == kind:
            found[name] = value, field.default
    return found


def nested_defaults(cls: type[Settings]) -> dict[str, Any]:
    """Returns the default of every field that has one, also of fields inside settings without a default."""
    hints, found = typing.get_type_hints(cls), cls.defaults()
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Settings) and field.name not in found:
            found[field.name] = nested_defaults(hint)
    return found


def group(values: Mapping[str, Any], name: str, parent: str) -> Mapping[str, Any]:
    """Returns the group `parent`.`name` of a config; raises WhaleError if it is missing."""
    if not isinstance(values.get(name), Mapping):
        raise WhaleError(f"The config has no group {parent}.{name}; start from default_config(), which has every one.")
    return values[name]


def check_least(settings: Any, **least: float) -> None:
    """Raises WhaleError for a field that is below its least value or not a finite number."""
    for name, value in least.items():
        given = getattr(settings, name)
        if not value <= given < math.inf:
            raise WhaleError(f"{name} is at least {value}, not {given}; correct it.")


def check_one_of(settings: Any, valid: Collection[str], *fields: str) -> None:
    """Raises WhaleError for a field that holds none of the valid names. The message gives the nearest ones."""
    for name in fields:
        if getattr(settings, name) not in valid:
            raise unknown_name(name.replace("_", " "), getattr(settings, name), valid)


def entry_type(hint: Any) -> type | None:
    """Returns the type of a tuple's entries if its type hint gives all of them the same type, else None."""
    entries = typing.get_args(hint)
    return entries[0] if typing.get_origin(hint) is tuple and len(set(entries) - {...}) == 1 else None


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, Settings) and isinstance(value, Mapping):
        return hint.from_dict(value, name)
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(hint, value):
        wanted = hint.__name__ if isinstance(hint, type) else str(hint).rpartition("abc.")[2]
        raise WhaleError(f"{name} takes a {wanted}, not {value!r}; correct the config.")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Returns whether a value has the type of its hint. Hints of a kind that no config uses are not checked."""
    kind, entries = typing.get_origin(hint), typing.get_args(hint)
    if kind is tuple:
        if not isinstance(value, tuple | list):
            return False
        entries = entries[:1] * len(value) if entries[-1] is ... else entries
        return len(entries) == len(value) and all(map(_fits, entries, value))
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_fits(entries[1], entry) for entry in value.values())
    if kind is types.UnionType:
        return any(value is None if entry is type(None) else _fits(entry, value) for entry in entries)
    if hint is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str) else True


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dictionaries, keyed by dotted name."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves
