"""A store, a trained work directory and the command line, for the tests of whole runs."""

import atexit
import dataclasses
import fcntl
import json
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

# Programs here run once or twice: what compiles quickly, here and in child processes, is tested quickly.
_QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
if _QUICK not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

# Before JAX is imported: all processes of the tests share what they compile, and leave the user's own cache alone.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="whale-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

sys.path.insert(0, str(Path(__file__).parent))

import durations  # noqa: E402
import tiny  # noqa: E402

# RLDS is read with packages that the quick start does without.
NEED_OXE = [
    "jobs/test_oxe_training.py",
    *(
        f"data/oxe/test_{name}.py"
        for name in ("check", "convert", "mixture", "openvla", "own_sets", "readings", "recipes", "sources")
    ),
    "data/rlds/test_rlds.py",
    "data/robot/test_own_rlds.py",
]
EXTRAS = "metaworld,viz,dev,oxe,lerobot,tensorflow"
NEED_LEROBOT = ["evaluation/test_imagined.py"]
NEED_LEROBOT += [f"data/robot/test_{name}.py" for name in ("bad_files", "folder", "generated", "importing")]
NEED_LEROBOT += [f"data/lerobot/test_{name}.py" for name in ("read", "write")]
PACKAGES = {"tensorflow_datasets": NEED_OXE, "pyarrow": NEED_LEROBOT}
collect_ignore = [name for package, names in PACKAGES.items() if not find_spec(package) for name in names]


def pytest_terminal_summary(terminalreporter):
    if collect_ignore:
        names = ", ".join(collect_ignore)
        terminalreporter.write_line(f"Left out, for they need WHALE_EXTRAS={EXTRAS}: {names}")


def pytest_addoption(parser):
    parser.addoption("--record-durations", action="store_true", help="write what every file took to durations.json")


def pytest_configure(config):
    config.pluginmanager.register(durations.Durations(config.option.record_durations), "durations")


@pytest.fixture(scope="session", autouse=True)
def importable():
    """Processes started here import the package from this checkout, wherever they run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tiny.ROOT))
        yield


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """A function (name, make) to a directory that `make` fills once for all processes of the tests."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def once(name, make):
        directory = base / "shared" / name
        directory.mkdir(parents=True, exist_ok=True)
        with open(directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (directory / "made").exists():
                make(directory)
                (directory / "made").touch()
        return directory

    return once


@pytest.fixture(scope="session")
def store(made_once):
    """An invented episode store."""
    return made_once("store", lambda directory: tiny.write_store(directory / "store")) / "store"


@pytest.fixture(scope="session")
def trained(store, made_once):
    """A work directory that `whale train` has taken to its report, and the finished process."""

    def train(directory):
        done = tiny.whale(*tiny.train_arguments(store, directory / "trained"))
        assert done.status == 0, done.err
        (directory / "done.json").write_text(json.dumps(dataclasses.asdict(done)))

    directory = made_once("runs", train)
    return directory / "trained", tiny.Done(**json.loads((directory / "done.json").read_text()))


@pytest.fixture
def whale(tmp_path_factory):
    """Runs a command in a forked process; see `tiny.forked`."""
    directory = tmp_path_factory.mktemp("output")
    return lambda *arguments, **env: tiny.forked(directory, *arguments, **env)
