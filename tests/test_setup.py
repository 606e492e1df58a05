"""Set-up is skipped if nothing changed and repeated if something did. Importing Whale costs nothing."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"jax", "flax", "orbax", "grain", "mujoco", "metaworld", "matplotlib", "tensorflow", "torch"}


CLEAN = {k: v for k, v in os.environ.items() if k not in ("WHALE_EXTRAS", "WHALE_PYTHON")}


def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, env=CLEAN | environment, cwd="/", capture_output=True, text=True)


@pytest.fixture
def tree(tmp_path):
    """A copy of the files that set-up reads, in a folder with a space, set up as far as its stamp tells."""
    tree = tmp_path / "my robot"
    (tree / "launch").mkdir(parents=True)
    for name in ("setup.py", "requirements.txt", "launch/setup.sh"):
        shutil.copy(ROOT / name, tree / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tree / ".venv"], check=True)
    write_stamp(tree)
    return tree


def write_stamp(tree: Path) -> None:
    """What a finished set-up leaves behind, written by the script's own functions."""
    code = "source launch/setup.sh; { inputs; echo gl osmesa; } > .venv/whale-setup"
    subprocess.run(["bash", "-c", code], env=CLEAN, cwd=tree, check=True)


def state(tree: Path, **environment: str) -> str:
    done = run(tree / "launch/setup.sh", "--check", **environment)
    assert done.returncode == (0 if done.stdout == "up to date\n" else 1)
    return done.stdout.strip()


def test_nothing_changed_is_skipped_at_once_and_silently(tree):
    start = time.monotonic()
    done = run(tree / "launch/setup.sh")
    assert time.monotonic() - start < 1
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["requirements.txt", "setup.py", "launch/setup.sh"])
def test_a_changed_file_makes_it_stale(tree, name):
    assert state(tree) == "up to date"
    with open(tree / name, "a") as file:
        file.write("# changed\n")
    assert state(tree) == "stale"


def test_other_extras_another_python_or_another_place_make_it_stale(tree):
    assert state(tree, WHALE_EXTRAS="oxe,viz") == "stale"
    assert state(tree, WHALE_PYTHON="python3") == "stale"
    moved = tree.rename(tree.with_name("moved robot"))
    assert state(moved) == "stale"
    write_stamp(moved)
    (moved / ".venv/bin/python").unlink()
    assert state(moved) == "stale"


def test_a_failed_install_shows_its_log_and_is_tried_again(tree):
    """With no package index at all, pip fails for real and at once, in words that depend on what it has cached."""
    with open(tree / "requirements.txt", "a") as file:
        file.write("# changed\n")
    done = run(tree / "launch/setup.sh", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tree))
    assert done.returncode not in (0, 2) and done.stdout == ""
    assert "failed\n" in done.stderr and re.search(r"^  \| .*error: ", done.stderr, re.M | re.I)
    assert not (tree / ".venv/whale-setup").exists()
    assert state(tree) == "stale"


def test_no_fitting_python_is_one_sentence_and_touches_nothing(tree):
    done = run(tree / "launch/setup.sh", WHALE_PYTHON="/bin/false")
    assert done.returncode == 2
    assert re.search(r"/bin/false is Python 3.11, 3.12 or 3.13.*WHALE_PYTHON=", done.stderr)
    assert len(done.stderr.splitlines()) == 1
    assert state(tree) == "up to date"


def test_a_second_set_up_waits_for_the_first_and_has_nothing_left_to_do(tree):
    (tree / ".venv/whale-setup").unlink()
    script = tree / "launch/setup.sh"
    with open(script) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = subprocess.Popen(["bash", script], env=CLEAN, stderr=subprocess.PIPE, text=True)
        assert "waiting for another set-up" in second.stderr.readline()
        assert second.poll() is None
        write_stamp(tree)
    assert second.wait(timeout=10) == 0
    assert second.stderr.read() == ""


@pytest.fixture
def launched(tree):
    """The launch scripts over a `whale` that tells how it was called."""
    for script in (ROOT / "launch").glob("*.sh"):
        shutil.copy(script, tree / "launch")
    write_stamp(tree)
    whale = tree / ".venv/bin/whale"
    whale.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$MUJOCO_GL" "$@"\n')
    whale.chmod(0o755)
    return tree


def test_pretrain_without_arguments_is_the_quick_start_in_the_repository(launched):
    done = run(launched / "launch/pretrain.sh", MUJOCO_GL="")
    config, workdir = launched / "configs/quickstart.py", launched / "runs/quickstart"
    assert done.stdout.splitlines() == ["/", "osmesa", "train", f"--config={config}", f"--workdir={workdir}"]
    assert str(workdir) in done.stderr


@pytest.mark.parametrize(("script", "command"), [("pretrain.sh", "train"), ("evaluate.sh", "evaluate")])
def test_arguments_and_the_users_own_gl_are_passed_on_untouched(launched, script, command):
    done = run(launched / "launch" / script, "--workdir=my runs/a b", "--x=*", MUJOCO_GL="egl")
    assert done.stdout.splitlines() == ["/", "egl", command, "--workdir=my runs/a b", "--x=*"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ((), ["-m", "not slow"]),
        (("--all",), []),
        (("--all", "-x"), ["-x"]),
        (("tests/a b", "-k", "x or y"), ["tests/a b", "-k", "x or y"]),
    ],
)
def test_the_short_set_is_what_is_tested_unless_something_else_is_named(launched, given, passed):
    python = launched / ".venv/bin/python"
    python.unlink()
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD" "$@"\n')
    python.chmod(0o755)
    done = run(launched / "launch/test.sh", *given)
    where, _, module, *arguments = done.stdout.splitlines()
    assert (where, module, done.stderr) == (str(launched), "pytest", "")
    fixed = ["-q", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--durations=10"]
    assert arguments == fixed + passed


def test_every_extra_is_pinned_once_and_exactly():
    lines = [line.removeprefix("# cuda: ") for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*( ; .+)?", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    assert len(names) == len(set(names))
    assert "torch" not in names
    setup = (ROOT / "setup.py").read_text()
    wanted = re.findall(r'"([A-Za-z][\w-]*)(?:\[\w+\])?>=', setup)
    assert len(wanted) > 20
    assert not {name.lower().replace("_", "-") for name in wanted} - set(names)
    assert "jax-cuda12-plugin" in names


def test_importing_whale_is_fast_and_light():
    code = "import sys, whale_jax; print(*{name.partition('.')[0] for name in sys.modules})"
    seconds = []
    command = [sys.executable, "-c", code]
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 2
    assert not HEAVY & set(done.stdout.split())
