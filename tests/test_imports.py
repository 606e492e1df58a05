"""The structure of the package: imports follow its order without cycles, and no folder holds too much."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny

PACKAGE = tiny.ROOT / "whale_jax"

# A package imports only from its own and from earlier ones, wherever in a file the import stands.
ORDER = (
    "base",
    "data.contract",
    "data.store",
    "data.media",
    "data.rlds",
    "data.oxe",
    "data.lerobot",
    "data.robot",
    "data.metaworld",
    "nn",
    "training",
    "models",
    "imagination",
    "evaluation",
    "control",
    "doctor",
    "jobs",
    "tools",
    "cli",
)
MOST_FILES = 20


def module_name(file: Path) -> str:
    """`data.store.store` of whale_jax/data/store/store.py; a package's own file has the package's name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imported(file: Path) -> Iterator[str]:
    """Modules of Whale that a file imports, at its head or inside functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "whale_jax":
            module = node.module.removeprefix("whale_jax").removeprefix(".")
            for alias in node.names:
                full = f"{module}.{alias.name}".removeprefix(".")
                yield full if full in MODULES else module
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("whale_jax.") for a in node.names if a.name.startswith("whale_jax."))


def place(module: str) -> int | None:
    """Where in `ORDER` a module stands; None for the files at the root."""
    fitting = (i for i, name in enumerate(ORDER) if module == name or module.startswith(f"{name}."))
    return next(fitting, None)


def arrows() -> set[tuple[str, str]]:
    return {(module, other) for module, file in MODULES.items() for other in imported(file) if other != module}


def test_every_package_has_its_place():
    folders = {name.partition(".")[0] for name in MODULES} - {"", "__main__"}
    assert folders == {name.partition(".")[0] for name in ORDER}
    assert {file.name for file in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_nothing_imports_upward():
    upward = {(a, b) for a, b in arrows() if None not in (place(a), place(b)) and place(b) > place(a)}
    assert not upward, "a package imports only from those before it"


def test_nobody_names_a_model_but_the_registry():
    """Only the sampler that Whale's rollouts are measured against belongs to one model."""
    folders = [name for name in MODULES if name.startswith("models.") and "." not in name.removeprefix("models.")]
    own = {name for name in folders if MODULES[name].name == "__init__.py"} - {"models.heads"}
    named = {
        (module, folder)
        for module, other in arrows()
        for folder in own
        if other.startswith(folder) and not module.startswith(folder)
    }
    assert {module for module, _ in named} == {"models.registry", "tools.bench.samplers"}


def test_no_imports_run_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for module, other in arrows():
        graph[module].add(other)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("root", ["whale_jax", "tests", "benchmarks", "configs", "docs", "launch"])
def test_no_folder_holds_too_much(root):
    folders = [tiny.ROOT / root, *(path for path in (tiny.ROOT / root).rglob("*") if path.is_dir())]
    files = {folder: [p for p in folder.iterdir() if p.is_file() and p.suffix != ".pyc"] for folder in folders}
    crowded = {str(folder): len(found) for folder, found in files.items() if len(found) > MOST_FILES}
    assert not crowded


def test_importing_whale_loads_nothing_heavy():
    code = "import sys, whale_jax; print(sorted({'jax', 'tensorflow', 'torch', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=tiny.environment(), capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_tensorflow_is_imported_in_no_more_than_one_file_and_torch_in_none():
    heads: dict[str, set[str]] = {"tensorflow": set(), "torch": set()}
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for head in {name.partition(".")[0] for name in names} & set(heads):
                heads[head].add(module)
    assert len(heads["tensorflow"]) <= 1 and not heads["torch"]


def test_former_names_still_work_with_a_warning():
    from whale_jax.base.names import MOVED

    code = (
        "import importlib, sys, warnings\n"
        "old, new = sys.argv[1:]\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    assert importlib.import_module(old) is importlib.import_module(new)\n"
        "assert any(w.category is DeprecationWarning and new in str(w.message) for w in seen)\n"
        "from whale_jax.data.oxe import RECIPES, TABLETOP, WHALE_X\n"
        "from whale_jax.data.store import EpisodeStore, open_store\n"
        "from whale_jax.data.metaworld import TASKS\n"
    )
    there = {old: new for old, new in MOVED.items() if ".oxe." not in new or find_spec("tensorflow_datasets")}
    for old, new in sorted(there.items())[::4]:
        subprocess.run([sys.executable, "-c", code, old, new], env=tiny.environment(), check=True)
