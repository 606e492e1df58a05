"""Jobs that run in parallel processes, none of which outlives this one. Does not import JAX."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from whale_jax.base.errors import WhaleError

Job, Result = TypeVar("Job"), TypeVar("Result")


def run_all(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    count: int,
    what: Callable[[Job], str],
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[Job, Result]]:
    """Runs `function` on every job in `count` processes and yields each job with its result when it is done.

    All processes end at once when the generator is closed, as `contextlib.closing` does. They also end when this
    process gets Ctrl-C or SIGTERM, or is killed.

    Args:
      function: a function of a module. It, the jobs and the results can be pickled. Its exceptions are raised here.
      jobs: the jobs; each is fetched when a process is free to run it.
      count: number of processes.
      what: describes what a process does with a job, for the error message if that process dies.
      environment: environment variables of the processes, set before the function and its imports are loaded.

    Raises:
      WhaleError: a process died.
    """
    waiting, workers = iter(jobs), []
    busy: dict[Connection, tuple[_Worker, Job]] = {}
    with _ended_by_sigterm():
        try:
            for job in islice(waiting, count):
                worker = _Worker(environment or {})
                workers.append(worker)
                busy[worker.start(function, job, what)] = worker, job
            while busy:
                for connection in wait(list(busy)):
                    worker, job = busy.pop(connection)
                    result = worker.result(job, what)
                    for following in islice(waiting, 1):
                        busy[worker.start(function, following, what)] = worker, following
                    yield job, result
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process that runs one job after another, which it gets through a pipe.

    The pools of Python's own need semaphores, and with them a /dev/shm that can be written.
    """

    def __init__(self, environment: Mapping[str, str]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, dict(environment)), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends when the process does

    def start(self, function: Callable[[Job], Any], job: Job, what: Callable[[Job], str]) -> Connection:
        """Starts a job, and returns what to wait for. Raises WhaleError if the process has died."""
        try:
            self._pipe.send((function, job))
        except OSError:
            raise self._died(job, what) from None
        return self._pipe

    def result(self, job: Job, what: Callable[[Job], str]) -> Any:
        """Returns the result of the job. Raises the job's error, or WhaleError if the process has died."""
        try:
            done, value = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died(job, what) from None
        if not done:
            raise value
        return value

    def _died(self, job: Job, what: Callable[[Job], str]) -> WhaleError:
        self._process.join()
        return WhaleError(
            f"The process {what(job)} died (exit code {self._process.exitcode}; -9 often means that memory ran out). "
            "What is complete is kept: run the same command again, with fewer workers if it recurs."
        )

    def stop(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, environment: Mapping[str, str]) -> None:
    """Runs the jobs that a pipe brings until it ends, and sends back (True, result) or (False, error)."""
    _begin(environment)
    while True:
        try:
            function, job = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(job)
        except Exception as error:
            answer = False, _portable(error)
        pipe.send(answer)


def _portable(error: Exception) -> Exception:
    """Returns an error as it arrives in another process, with its lines in this one as a note, for --debug."""
    error.add_note(traceback.format_exc())
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:  # it cannot be made from its message alone
        return WhaleError(str(error)) if isinstance(error, WhaleError) else RuntimeError(repr(error))


def _begin(environment: Mapping[str, str]) -> None:
    """Makes this process end as soon as its parent does, and leaves Ctrl-C, which reaches both, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)

    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the block as Ctrl-C does, unless the process already handles SIGTERM."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
