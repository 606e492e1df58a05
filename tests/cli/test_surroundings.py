"""Surroundings of a command: platforms, permissions, homes, letters of the terminal, and copied checkpoints."""

import json
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny

import whale_jax
from whale_jax.base.errors import WhaleError
from whale_jax.base.process import user_cache
from whale_jax.data.store.store import open_store
from whale_jax.models.saved import find

NEEDS_OXE = pytest.mark.skipif(find_spec("tensorflow_datasets") is None, reason="needs WHALE_EXTRAS=…,oxe")


def run(*arguments, **env):
    done = tiny.whale(*map(str, arguments), **env)
    return done.status, done.out, done.err


@pytest.fixture
def copied(trained):
    """A run's newest step alone, where others may read it."""
    where, step = find(trained[0])
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        shutil.copytree(where / str(step), run / "checkpoints" / where.name / str(step))
        for path in (run.parent, *run.parent.rglob("*")):
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "rocm", "nonsense"])
def test_a_platform_that_is_not_here_is_named_and_no_checkpoint_is_blamed(trained, store, platform):
    episode = next(store.rglob("*.npz"))
    command = ("imagine", f"--checkpoint={trained[0]}", f"--episode={episode}", "--out=/tmp/never.mp4")
    status, _, err = run(*command, JAX_PLATFORMS=platform)
    assert status == 2 and f"JAX does not start on JAX_PLATFORMS={platform}" in err and "JAX_PLATFORMS=cpu" in err
    assert "truncated" not in err and len(err.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_parameters_that_another_user_may_not_read_are_not_called_broken(copied):
    code = """
import os, sys, whale_jax
from whale_jax.base.errors import WhaleError
whale_jax.load(sys.argv[1])  # imports what only this user may read
os.setgroups([])
os.setresuid(12345, 12345, 12345)
try:
    whale_jax.load(sys.argv[1])
except WhaleError as error:
    print(error)
"""
    for path in copied.rglob("params/d/*"):
        path.chmod(0o600)
    said = tiny.python(code, str(copied)).out
    assert "params/d/" in said and "may not be read by this user" in said and "truncated" not in said


def test_a_pointer_of_git_lfs_in_a_checkpoint_is_said(copied):
    path = next(path for path in copied.rglob("params/d/*") if path.is_file())
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    with pytest.raises(WhaleError, match="is a pointer of git-lfs; `git lfs pull` brings the data"):
        whale_jax.load(copied)


def test_a_checkpoint_is_known_by_what_it_holds(copied, tmp_path):
    where, step = find(copied)
    shutil.copytree(where / str(step), tmp_path / "best")
    (tmp_path / "latest").symlink_to(where / str(step))
    whole = whale_jax.load(copied).fingerprint
    for path in (tmp_path / "best", tmp_path / "latest", copied / "checkpoints"):
        assert whale_jax.load(path).fingerprint == whole


def test_a_checkpoint_of_a_later_version_says_which_fields_are_new(copied):
    where, step = find(copied)
    path = where / str(step) / "meta" / "metadata"
    path.write_text(path.read_text().replace("{", '{"dialect": 3, ', 1))
    with pytest.raises(WhaleError, match="describes itself with dialect, which this version does not know"):
        whale_jax.load(copied)


def test_without_a_home_there_is_no_cache_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    monkeypatch.setattr(Path, "expanduser", lambda self: Path.home() if str(self).startswith("~") else self)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert user_cache() is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/named")
    assert user_cache() == Path("/named/whale_jax")


def test_the_home_is_found_for_its_sign_everywhere(store, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(store)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_store("~/data")) == len(open_store(store))
    status, _, err = run("data", "import", "--from=~/data", "--to=~/copy", HOME=str(tmp_path))
    assert status == 0, err
    assert (tmp_path / "copy" / "manifest.json").exists() and not Path("~").exists()


def test_a_config_that_lies_elsewhere_says_from_where_paths_count(tmp_path):
    error = tiny.forked(tmp_path, "inspect", "--config=configs/quickstart.py", cwd=tmp_path).error()
    assert "did you mean quickstart?" in error and f"A path counts from {tmp_path}; give one from there" in error
    assert tiny.forked(tmp_path, "inspect", "--config=quickstart", "--json", cwd=tmp_path).status == 0


def test_letters_that_a_terminal_lacks_are_replaced(trained):
    status, out, err = run("watch", trained[0], "--once", PYTHONIOENCODING="ascii")
    assert status == 0 and "Error" not in err and out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--episodes=1"], "cannot be written (Read-only file system); name another place with --output=DIR"),
        (["--suite=value", "--output=O"], "name another place with --data=DIR, an episode store of policies"),
    ],
)
def test_a_run_that_cannot_be_written_is_refused_before_anything_is_imagined(more, says, copied, store, tmp_path):
    (copied / ".lock").touch()
    more = [argument.replace("=O", f"={tmp_path}") for argument in more]
    if "--episodes=1" in more:
        more.append(f"--data={store}")
    else:
        path = next(copied.glob("checkpoints/*/*/meta/metadata"))
        meta = json.loads(path.read_text())
        meta["config"]["data"]["record"]["tasks"] = ["reach"]
        path.write_text(json.dumps(meta))
    read_only = f"mount --bind {copied} {copied} && mount -o remount,bind,ro {copied}"
    command = tiny.mounted(read_only, *tiny.command("evaluate", f"--checkpoint={copied}", *more))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=tiny.environment(), cwd=tiny.ROOT)
    assert done.returncode == 2 and says in done.stderr and "evaluated" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["data", "import", "--from=S", "--to=F/x"], "--to=DIR"),
        (["data", "export", "--from=S", "--to=F/x", "--name=robot", "--format=lerobot"], "--to=DIR"),
        (["doctor", "actions", "--data=S", "--output=F/x"], "--output=DIR"),
        pytest.param(["data", "check", "--root=S", "--output=F/x"], "--output=DIR", marks=NEEDS_OXE),
        (["imagine", "--checkpoint=R", "--data=S", "--out=F/x"], "--out=DIR"),
        (["evaluate", "--checkpoint=R", "--data=S", "--output=F/x"], "--output=DIR"),
        (["report", "--from=R", "--output=F/x"], "--output=DIR"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_with_its_option(command, option, trained, store, tmp_path, whale):
    (tmp_path / "file").write_text("mine")
    places = {"=S": store, "=R": trained[0], "=F": tmp_path / "file"}
    for sign, place in places.items():
        command = [argument.replace(sign, f"={place}") for argument in command]
    error = whale(*command).error()
    assert f"{tmp_path}/file/x cannot be written" in error and f"name another place with {option}" in error
    assert (tmp_path / "file").read_text() == "mine"
