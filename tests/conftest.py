"""A store, a trained work directory and the command line, for the tests of whole runs."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Programs here run once or twice: what compiles quickly, here and in child processes, is tested quickly.
_QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

sys.path.insert(0, str(Path(__file__).parent))

import tiny  # noqa: E402

# RLDS is read with packages that the quick start does without.
NEED_OXE = [
    "test_oxe_training.py",
    *(f"data/oxe/test_{name}.py" for name in ("check", "convert", "mixture", "recipes")),
    "data/rlds/test_rlds.py",
]
EXTRAS = "metaworld,viz,dev,oxe,lerobot,tensorflow"
NEED_LEROBOT = ["evaluation/test_imagined.py"]
NEED_LEROBOT += [f"data/{name}.py" for name in ("robot/test_folder", "robot/test_importing")]
NEED_LEROBOT += [f"data/lerobot/test_{name}.py" for name in ("read", "write")]
PACKAGES = {"tensorflow_datasets": NEED_OXE, "pyarrow": NEED_LEROBOT}
collect_ignore = [name for package, names in PACKAGES.items() if not find_spec(package) for name in names]


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        names = ", ".join(collect_ignore)
        terminalreporter.write_line(f"Left out, for they need WHALE_EXTRAS={EXTRAS}: {names}")


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """Processes started here share what they compile, and leave the user's own cache alone."""
    patch = pytest.MonkeyPatch()
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or base / "compiled"
    patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    patch.setenv("PYTHONPATH", str(tiny.ROOT))
    yield cache
    patch.undo()


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """An invented episode store."""
    return tiny.write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def trained(store, tmp_path_factory):
    """A work directory that `whale train` has taken to its report, and the finished process."""
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    done = tiny.whale(*tiny.train_arguments(store, workdir))
    assert done.status == 0, done.err
    return workdir, done


@pytest.fixture
def whale(tmp_path_factory):
    """Runs a command in a forked process; see `tiny.forked`."""
    directory = tmp_path_factory.mktemp("output")
    return lambda *arguments, **env: tiny.forked(directory, *arguments, **env)
