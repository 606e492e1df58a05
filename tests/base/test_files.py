"""Files that are whole or not there, results that are made once, and the lock between processes."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached, digest, locked, replacing, replacing_directory


@pytest.fixture
def making():
    """A function that counts how often it was called."""

    def make():
        make.calls += 1
        return {"value": make.calls, "films": ["films/a.mp4"]}

    make.calls = 0
    return make


def test_a_result_is_made_once_and_again_when_anything_has_changed(tmp_path, making):
    (tmp_path / "films").mkdir()
    (tmp_path / "films/a.mp4").write_bytes(b"film")
    parts = [{"horizon": 3}, np.arange(6.0)]
    first = cached(tmp_path, "reach/expert.json", parts, making)
    assert cached(tmp_path, "reach/expert.json", parts, making) == first and making.calls == 1
    cached(tmp_path, "reach/expert.json", [parts[0], parts[1] + 1], making)
    assert making.calls == 2
    (tmp_path / "reach/expert.json").write_text('{"value": 1, "made')
    cached(tmp_path, "reach/expert.json", parts, making)
    (tmp_path / "films/a.mp4").unlink()
    cached(tmp_path, "reach/expert.json", parts, making)
    (tmp_path / "reach/expert.json").write_text("[]")
    cached(tmp_path, "reach/expert.json", parts, making)
    assert making.calls == 5


def test_a_failure_is_not_kept(tmp_path, making):
    def fail():
        raise ValueError("lost")

    with pytest.raises(ValueError):
        cached(tmp_path, "reach.json", [1], fail)
    assert cached(tmp_path, "reach.json", [1], making)["value"] == 1


def test_digests_tell_content_shape_and_type_apart():
    array = np.arange(6, dtype=np.int32)
    others = [array + 1, array.reshape(2, 3), array.view(np.uint32), array.tolist()]
    assert digest([array]) == digest([array.copy()]) and len({digest([x]) for x in [array, *others]}) == 5
    assert digest([array.reshape(2, 3).T]) == digest([np.ascontiguousarray(array.reshape(2, 3).T)])


def test_a_second_process_is_told_who_holds_a_lock_until_that_lets_go(tmp_path):
    lock = tmp_path / "run" / ".lock"
    with tiny.holder(lock) as process:
        for _ in range(2):
            with pytest.raises(WhaleError, match=f"writing into {lock.parent} .process {process.pid} on "):
                locked(lock).__enter__()
        process.stdin.close()
        with locked(lock, wait=True):
            assert process.wait() == 0
    assert os.listdir(lock.parent) == [".lock"]


@pytest.mark.parametrize("more", [(), ("fork",)])
def test_a_killed_process_holds_nothing_even_if_its_children_live_on(tmp_path, more):
    with tiny.holder(tmp_path / ".lock", *more) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with locked(tmp_path / ".lock"):
            assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")


def test_a_lock_is_entered_again_and_left_with_the_outermost(tmp_path):
    with locked(tmp_path / ".lock"):
        with locked(tmp_path / ".lock"):
            pass
        command = [sys.executable, "-c", tiny.HOLD, str(tmp_path / ".lock")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"process {os.getpid()} on" in done.stderr
    with tiny.holder(tmp_path / ".lock"):
        pass


def test_a_file_or_directory_is_replaced_whole_or_not_at_all(tmp_path):
    for writer, name in ((replacing, "file"), (replacing_directory, "directory")):
        for text in ("old", "new"):
            with writer(tmp_path / name) as place:
                place.write(text.encode()) if name == "file" else (place / text).write_text(text)
        with pytest.raises(KeyError), writer(tmp_path / name) as place:
            place.write(b"half") if name == "file" else (place / "half").write_text("half")
            raise KeyError
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path / "directory") == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["directory", "file"]
