"""The cost of the tests is summed over processes, and tests that exceed their budget are named."""

import re
import subprocess
import sys
from pathlib import Path

import tiny

CONFTEST = """
import durations
durations.BUDGET, durations.SLOW_BUDGET, durations.RECORD = 0.5, 1.5, durations.Path(__file__).with_name("record.json")
def pytest_addoption(parser):
    parser.addoption("--record-durations", action="store_true")
def pytest_configure(config):
    config.addinivalue_line("markers", "slow: as in the tests of Whale")
    config.pluginmanager.register(durations.Durations(config.option.record_durations))
"""
BURN = """
import pytest, subprocess, sys, time
def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end: pass
"""
TESTS = {
    "test_few.py": "def test_quick(): burn(0.1)",
    "test_many.py": """
def test_child(): subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.8: pass"])
def test_waiting(): time.sleep(0.8)
@pytest.mark.slow
def test_slow(): burn(0.9)
@pytest.fixture(scope="module")
def made(): burn(1.7)
def test_first(made): pass
def test_second(made): pass
""",
}


def run(directory: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *arguments]
    env = tiny.environment(PYTHONPATH=str(Path(tiny.__file__).parent))
    done = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_files_are_summed_over_processes_and_what_is_over_its_budget_is_named(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name, text in TESTS.items():
        (tmp_path / name).write_text(BURN + text)
    out = run(tmp_path, "-n", "2", "--dist", "loadfile", "--record-durations")
    files = {name: float(seconds) for seconds, name in re.findall(r"(?m)^ *([0-9.]+)  (test_\w+\.py)$", out)}
    assert list(files) == ["test_many.py", "test_few.py"] and files["test_many.py"] > 3.3 > 0.5 > files["test_few.py"]
    named = re.findall(r"(?m)^over budget: (\S+)(?: \((\w+)\))? took (?:\d+) s; (.*) may take", out)
    assert named == [
        ("test_many.py::test_child", "", "a test"),
        ("test_many.py::test_first", "setup", "what tests set up"),
    ]
    order = re.findall(r"(?m)^(test_\w+\.py)::", run(tmp_path, "-v", "-v"))
    assert order[0] == "test_many.py" and order[-1] == "test_few.py", "the longest comes first once it is recorded"
