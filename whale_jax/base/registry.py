"""Registries of one row: models, heads, estimators, measures, suites and readers, by name.

A plug-in is a module that adds rows when it is imported. Only `--plugin=MODULE` or an import imports it, never a
checkpoint.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from whale_jax.base.errors import WhaleError, unknown_name

Row = TypeVar("Row")
_importing: list[str] = []  # names of the plug-ins being imported, the innermost last


class Registry(Mapping[str, Row], Generic[Row]):
    """Rows by their attribute `name`, in the order in which they were added."""

    def __init__(self, kind: str, rows: Iterable[Row]):
        """Takes what a row is called in messages, and the rows that Whale has itself."""
        self._kind, self._rows, self._plugins = kind, {}, {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> Row:
        """Adds a row and returns it, so that it also decorates a class.

        Raises:
          WhaleError: the row has no name, or another row has its name.
        """
        name = getattr(row, "name", None)
        if not isinstance(name, str) or not name:
            raise WhaleError(f"A {self._kind} needs a name, a text in its attribute `name`, and {row!r} has {name!r}.")
        plugin = _importing[-1] if _importing else ""
        if name in self._rows and (not plugin or self._plugins[name] != plugin):
            raise WhaleError(f"There is a {self._kind} {name} already; call yours otherwise.")
        self._rows[name], self._plugins[name] = row, plugin
        return row

    def find(self, name: str, among: Collection[str] | None = None) -> Row:
        """Returns the row of a name; raises WhaleError with the nearest names if there is none."""
        if name not in self._rows:
            raise unknown_name(self._kind, name, list(self._rows if among is None else among))
        return self._rows[name]

    def plugin(self, name: str) -> str:
        """Returns the plug-in that added a row; "" for a row of Whale's own."""
        return self._plugins.get(name, "")

    def __getitem__(self, name: str) -> Row:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def load_plugin(module: str) -> None:
    """Imports a plug-in, whose rows are then known to belong to it; the module may also lie in the current folder.

    Raises:
      WhaleError: the module does not exist, or fails while it is imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _naming(module):
        try:
            importlib.import_module(module)
        except WhaleError as error:
            raise WhaleError(f"The plug-in {module} cannot be used: {error}") from error
        except ModuleNotFoundError as error:
            missing = f"it needs {error.name}, which is not installed"
            if module == error.name or module.startswith(f"{error.name}."):
                missing = "there is no such module; install it, or name its directory in PYTHONPATH"
            raise WhaleError(f"The plug-in {module} cannot be imported: {missing}.") from error
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0]
            raise WhaleError(
                f"The plug-in {module} cannot be imported: {type(error).__name__}: {text}; correct it."
            ) from error


@contextlib.contextmanager
def _naming(module: str) -> Iterator[None]:
    _importing.append(module)
    try:
        yield
    finally:
        _importing.pop()
