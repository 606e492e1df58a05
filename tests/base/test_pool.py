"""Jobs in other processes: results, errors, and surroundings in which semaphores cannot be made."""

import contextlib
import os
import subprocess
import sys

import pytest
import tiny

from whale_jax.base.errors import WhaleError
from whale_jax.base.pool import run_all


class TwoPartError(WhaleError):
    """An error that is not made from its message alone."""

    def __init__(self, name, problem):
        super().__init__(f"{name} has {problem}")


def work(job):
    if job == "two":
        raise TwoPartError("job two", "a fault")
    if job == "value":
        raise ValueError("no number")
    if job == "die":
        os._exit(7)
    return os.getpid(), os.environ.get("OF_THE_POOL")


def done(jobs, count=2):
    with contextlib.closing(run_all(work, jobs, count, lambda job: f"at work on {job}", {"OF_THE_POOL": "yes"})) as all:
        return list(all)


def test_every_job_comes_back_from_as_many_processes_as_asked_for():
    found = done(list("abcdef"))
    assert sorted(job for job, _ in found) == list("abcdef")
    processes = {pid for _, (pid, _) in found}
    assert len(processes) <= 2 and os.getpid() not in processes
    assert {value for _, (_, value) in found} == {"yes"} and "OF_THE_POOL" not in os.environ


def test_an_error_comes_back_as_it_is_with_its_lines_there():
    with pytest.raises(ValueError, match="no number") as caught:
        done(["a", "value"])
    assert "in work" in caught.value.__notes__[0]
    with pytest.raises(WhaleError, match="^job two has a fault$"):
        done(["two"])


def test_a_process_that_ends_is_said_with_what_it_did():
    with pytest.raises(WhaleError, match=r"The process at work on die died \(exit code 7"):
        done(["a", "die"])


def test_no_shared_memory_is_needed():
    code = (
        "import os; from whale_jax.base.pool import run_all\n"
        "if __name__ == '__main__': print(dict(run_all(os.path.basename, ['a/b', 'c/d'], 2, str)))"
    )
    command = tiny.mounted("mount -t tmpfs -o ro none /dev/shm", sys.executable, "-c", code)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, env=tiny.environment())
    assert ended.returncode == 0 and "'c/d': 'd'" in ended.stdout, ended.stderr
