"""The wheel holds everything that the commands need, and runs outside a checkout. The version is stated once."""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

import whale_jax
from whale_jax.base.names import MOVED

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "whale_jax", "configs")


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command that knows nothing of this checkout."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built without network from a copy, because setuptools leaves its `build` folder in the source."""
    if Version(metadata.version("setuptools")) < Version("77"):
        pytest.skip("setuptools 77 or later is needed to build the wheel: bash launch/setup.sh")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", out, source, cwd=out)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment of its own with the wheel in it, and this one's packages within sight."""
    directory = tmp_path_factory.mktemp("environment")
    venv.create(directory, with_pip=False)
    python = directory / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip())
    # Paths in a .pth file are searched, but .pth files there are not read: an editable Whale stays out of sight.
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "packages.pth").write_text("\n".join(packages) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall")
    run(*pip, wheel, cwd=directory)
    return directory


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_the_configs(wheel):
    assert wheel.name.startswith(f"whale_jax-{whale_jax.__version__}-py3-")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    folders = ((ROOT / "whale_jax", "whale_jax"), (ROOT / "configs", "whale_jax/configs"))
    wanted = {
        f"{prefix}/{path.relative_to(folder).as_posix()}"
        for folder, prefix in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(wanted) > 150 and wanted == {name for name in names if name.startswith("whale_jax/")}


@pytest.mark.slow
def test_the_installed_wheel_runs_from_an_empty_directory(environment, tmp_path):
    whale = environment / "bin" / "whale"
    where = "import whale_jax; print(whale_jax.__file__)"
    package = Path(run(environment / "bin" / "python", "-c", where, cwd=tmp_path).strip()).parent
    assert package.is_relative_to(environment)

    doctor = json.loads(run(whale, "doctor", "--json", cwd=tmp_path))
    checks = {check["name"]: check for check in doctor["checks"]}
    assert doctor["healthy"] and checks["whale-jax"]["value"] == whale_jax.__version__
    assert not any("launch/" in check["advice"] or "requirements.txt" in check["advice"] for check in doctor["checks"])

    report = json.loads(run(whale, "inspect", "--config=quickstart", "--json", cwd=tmp_path))
    assert report["parameters"]["tokenizer"] > 1e6


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == whale_jax.__version__
    released = re.search(r"(?m)^## \[(\d.*?)\] - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text())
    assert released[1] == whale_jax.__version__ and released[2] == str(citation["date-released"])


def test_the_changelog_names_every_moved_module():
    rows = re.findall(r"(?m)^ *\| `(\S+)` \| `(\S+)` \|$", (ROOT / "CHANGELOG.md").read_text())
    assert dict(rows) == MOVED
