"""The doctor reports the true state of this machine, and says what to do about everything that is missing."""

import json
import subprocess
import sys
import time
from importlib import metadata, util
from pathlib import Path

import pytest

import whale_jax
from whale_jax.doctor import machine as doctor
from whale_jax.doctor.machine import Check


@pytest.fixture(scope="module")
def report():
    """The doctor's findings in a process of its own, with the modules and the seconds that it took."""
    code = (
        "import json, sys; from whale_jax.doctor import machine as doctor; print(doctor.to_json(doctor.diagnose()));"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    text, modules = done.stdout.rsplit("\n", 2)[:2]
    return json.loads(text), set(json.loads(modules)), seconds


def test_reports_in_under_ten_seconds_without_importing_tensorflow(report):
    _, modules, seconds = report
    assert seconds < 10
    assert not modules & {"jax", "tensorflow", "torch", "mujoco"}


def test_json_holds_what_this_machine_has(report):
    document, _, _ = report
    checks = {check["name"]: Check(**check) for check in document["checks"]}
    assert checks["python"].value == ".".join(map(str, sys.version_info[:3]))
    assert "cpu" in checks["devices"].value or "cuda" in checks["devices"].value
    assert float(checks["free memory"].value.split()[0]) > 0
    assert (checks["wandb"].status == "ok") == (util.find_spec("wandb") is not None)
    if "jax" in checks:
        assert checks["jax"].value == metadata.version("jax")
        for part, package in (("oxe", "tensorflow-datasets"), ("lerobot", "pyarrow"), ("viz", "matplotlib")):
            there = any(d.metadata["Name"] == package for d in metadata.distributions())
            assert (f"{package} missing" in checks[f"[{part}]"].value) == (not there)
            assert there or f'-e ".[{part}]"' in checks[f"[{part}]"].advice


def test_whatever_is_not_ok_comes_with_advice(report):
    document, _, _ = report
    assert all(check["advice"] for check in document["checks"] if check["status"] != "ok")
    assert not any(check["advice"] for check in document["checks"] if check["status"] == "ok")


def test_only_missing_requirements_make_it_unhealthy():
    fine = [Check("a", "ok", "1", required=True), Check("b", "missing", "no"), Check("c", "warn", "2")]
    assert doctor.healthy(fine)
    assert doctor.healthy([*fine, Check("old", "warn", "0.1", "update", required=True)])
    assert not doctor.healthy([*fine, Check("jax", "missing", "no", "get jax", required=True)])


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_table_fits_its_width_and_loses_no_word(width):
    checks = [Check("[oxe]", "missing", "tensorflow-cpu missing", 'pip install -e ".[oxe]" ' + "word " * 40)]
    text = doctor.to_text(checks, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("word") == 40
    assert "[oxe]" in text


def advice_without_whale(tree: Path, checkout: bool) -> str:
    """Returns what the code in `tree` tells a Python whose only package is `packaging` (-I -S hides the rest)."""
    packaging = Path(util.find_spec("packaging").origin).parent
    (tree / "packaging").symlink_to(packaging)
    (tree / "whale_jax").symlink_to(Path(whale_jax.__file__).parent)
    if checkout:
        (tree / "launch").mkdir()
        (tree / "launch" / "setup.sh").touch()
    code = (
        f"import sys; sys.path.insert(0, {str(tree)!r})\n"
        "from whale_jax.doctor import machine as doctor; print(doctor._packages()[0].advice)"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_checkout_that_was_never_set_up_is_told_to_set_up(tmp_path):
    assert advice_without_whale(tmp_path, checkout=True) == "bash launch/setup.sh"


def test_outside_a_checkout_the_advice_is_pip(tmp_path):
    assert advice_without_whale(tmp_path, checkout=False) == f'{sys.executable} -m pip install "WHEEL"'


def test_advice_names_the_checkout_when_run_elsewhere(tmp_path, monkeypatch):
    root = Path(whale_jax.__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    assert doctor._set_up() == f"bash {root / 'launch' / 'setup.sh'}"
    assert f'-c {root / "requirements.txt"} -e "{root}[viz]"' in doctor._pip_install("viz")
    monkeypatch.chdir(root)
    assert doctor._set_up() == "bash launch/setup.sh"
    assert doctor._pip_install("viz").endswith('-m pip install -c requirements.txt -e ".[viz]"')
