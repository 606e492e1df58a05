"""Settings: frozen dataclasses that survive a round trip through JSON."""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Self

from whale_jax.base.errors import WhaleError, unknown_name


class Settings:
    """Base of every module's settings: a frozen dataclass built from, and turned into, plain dictionaries."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values only (numbers, strings, booleans, lists, dictionaries)."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds the settings, nested ones included.

        Raises:
          WhaleError: a key does not exist (with the nearest ones that do) or a required one is missing.
        """
        hints = typing.get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                raise unknown_name(f"{cls.__name__} field", name, fields)
        missing = [
            name
            for name, field in fields.items()
            if name not in values
            and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise WhaleError(f"{cls.__name__} needs a value for {', '.join(missing)}; add it to the config.")
        return cls(**{name: _convert(hints[name], value) for name, value in values.items()})


def _convert(hint: Any, value: Any) -> Any:
    if isinstance(hint, type) and issubclass(hint, Settings) and isinstance(value, Mapping):
        return hint.from_dict(value)
    return tuple(value) if isinstance(value, list) else value


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dictionaries by dotted name."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return leaves
