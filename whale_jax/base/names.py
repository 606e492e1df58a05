"""Lazy loading of public names, published files by name, and imports of modules under their former names."""

import importlib
import importlib.abc
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError, unknown_name

# Current name of each module that README and docs have shown under another name. Each row stays for one release.
MOVED = {
    "whale_jax.configuration": "whale_jax.jobs.configuration",
    "whale_jax.control.dream": "whale_jax.imagination.environments.dream",
    "whale_jax.control.envs": "whale_jax.imagination.environments.envs",
    "whale_jax.data.actions": "whale_jax.data.contract.actions",
    "whale_jax.data.episode": "whale_jax.data.contract.episode",
    "whale_jax.data.mixture": "whale_jax.data.oxe.mixture",
    "whale_jax.data.storage": "whale_jax.data.store.storage",
    "whale_jax.errors": "whale_jax.base.errors",
    "whale_jax.finetune": "whale_jax.jobs.finetune",
    "whale_jax.pretrain": "whale_jax.jobs.pretrain",
    "whale_jax.process": "whale_jax.base.process",
}


def published(folder: str, suffix: str) -> dict[str, Path]:
    """Returns the files that Whale publishes in `configs` or in one of its folders, by name.

    They lie inside the package if it was installed from a wheel, and next to it in a checkout.
    """
    package = Path(__file__).parents[1]
    homes = [parent / "configs" for parent in (package, package.parent)]
    home = next((home for home in homes if home.is_dir()), homes[0])
    return {path.stem: path for path in sorted((home / folder).glob(f"*{suffix}"))}


def find_published(kind: str, given: str, folder: str, suffix: str) -> Path:
    """Returns the file at a path, or the published file of that name.

    Raises:
      WhaleError: neither exists (with the nearest names of both), or the path is a directory.
    """
    path, names = Path(given), published(folder, suffix)
    if path.is_file():
        return path
    if given in names:
        return names[given]
    if path.is_dir():
        raise WhaleError(f"{path} is a directory and no {kind}; give a file, or one of {', '.join(names)}.")
    beside = path.parent.glob(f"*{suffix}") if path.parent.is_dir() else ()
    error = unknown_name(kind, given, [*names, *map(str, beside)])
    if path.is_absolute() or not path.suffix and len(path.parts) == 1:
        raise error
    raise WhaleError(f"{error} A path counts from {Path.cwd()}; give one from there, or the name of a published file.")


def lazy(package: str, homes: Mapping[str, str], former: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """Returns a `__getattr__` for a module that loads public names on first use.

    Args:
      package: name of the module that offers the names.
      homes: full name of the module that defines each public name.
      former: current name of each public name that was called otherwise, which works for one release with a warning.
    """

    def get(name: str) -> Any:
        if former and name in former:
            warnings.warn(f"{package}.{name} is now {package}.{former[name]}.", DeprecationWarning, stacklevel=2)
            name = former[name]
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """An importer that finds a module of `MOVED` under its former name and warns. It is the last finder asked."""

    def find_spec(self, name: str, path: Any = None, target: Any = None):
        return importlib.util.spec_from_loader(name, self) if name in MOVED else None

    def create_module(self, spec) -> types.ModuleType:
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {new}; import that.", DeprecationWarning, stacklevel=2)
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        # Python returns the entry of sys.modules once a loader is done, so both names give the same module.
        sys.modules[module.__name__] = importlib.import_module(MOVED[module.__name__])


def find_moved_modules() -> None:
    """Lets `import` find the modules of `MOVED` under their former names."""
    if not any(isinstance(finder, _MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(_MovedModules())
