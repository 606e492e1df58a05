"""The choice of a checkpoint's parameters that a component starts with when their shapes differ in part."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import flat
from whale_jax.training.sharding import Params

Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Adoption:
    """Shapes of parameters by dotted name.

    Attributes:
      restored: parameters taken from the checkpoint.
      new: freshly drawn parameters, which the checkpoint lacks or has in another shape, or which are to be renewed.
      dropped: parameters of the checkpoint that are not taken.
      frozen: first names of the parts that are not trained.
    """

    restored: Shapes
    new: Shapes
    dropped: Shapes
    frozen: tuple[str, ...] = ()

    def lines(self, component: str) -> list[str]:
        """Returns one line per parameter, and a last line that counts them."""
        lines = []
        for kind in ("restored", "new", "dropped"):
            for name, shape in getattr(self, kind).items():
                note = ", frozen" if kind == "restored" and name.split(".")[0] in self.frozen else ""
                lines.append(f"  {kind:<9}{component}.{name} {shape}{note}")
        counts = ", ".join(f"{len(getattr(self, kind))} {kind}" for kind in ("restored", "new", "dropped"))
        return [*lines, f"{component}: {counts}"]


def compare(fresh: Mapping[str, Any], saved: Mapping[str, Any], renew: Sequence[str], frozen=()) -> Adoption:
    """Returns what `adopt` does with trees of arrays or of their shapes.

    Args:
      fresh: newly drawn parameters of the component.
      saved: parameters of the checkpoint.
      renew: patterns of dotted names that are drawn anew even if the checkpoint has them.
      frozen: first names of the parts that are not trained.

    Raises:
      WhaleError: a pattern of `renew` matches nothing.
    """
    wanted, there = flat(fresh), flat(saved)
    for pattern in renew:
        if not fnmatch.filter(wanted, pattern):
            raise WhaleError(f"No parameter to renew is called {pattern}; there are {', '.join(list(wanted)[:5])}, ….")
    renewed = {name for pattern in renew for name in fnmatch.filter(wanted, pattern)}
    same = {name for name in wanted.keys() & there.keys() if tuple(wanted[name].shape) == tuple(there[name].shape)}
    same -= renewed
    return Adoption(
        restored={name: tuple(wanted[name].shape) for name in wanted if name in same},
        new={name: tuple(wanted[name].shape) for name in wanted if name not in same},
        dropped={name: tuple(there[name].shape) for name in there if name not in same},
        frozen=tuple(frozen),
    )


def adopt(fresh: Params, saved: Params, renew: Sequence[str] = ()) -> Params:
    """Returns `fresh` with every parameter that `saved` has under the same name and in the same shape.

    Parameters that match a pattern of `renew` stay fresh.

    Raises:
      WhaleError: a pattern of `renew` matches nothing.
    """
    restored = compare(fresh, saved, renew).restored

    def pick(fresh: Any, saved: Any, name: str) -> Any:
        if isinstance(fresh, Mapping):
            parts = saved if isinstance(saved, Mapping) else {}
            return {key: pick(value, parts.get(key), f"{name}{key}.") for key, value in fresh.items()}
        # The last character is the dot that the recursion appends to every part.
        return saved if name[:-1] in restored else fresh

    return pick(fresh, saved, "")
