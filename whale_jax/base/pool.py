"""Jobs that run in parallel processes, none of which outlives this one. Does not import JAX."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

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
    busy: dict[Future, tuple[_Worker, Job]] = {}
    with _ended_by_sigterm():
        try:
            for job in islice(waiting, count):
                worker = _Worker(environment or {})
                workers.append(worker)
                busy[worker.start(function, job)] = worker, job
            while busy:
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    worker, job = busy.pop(future)
                    result = future.result()
                    for following in islice(waiting, 1):
                        busy[worker.start(function, following)] = worker, following
                    yield job, result
        except BrokenProcessPool:
            raise WhaleError(
                f"The process {what(job)} died (exit code {worker.exit_code()}; -9 often means that memory ran out). "
                "What is complete is kept: run the same command again, with fewer workers if it recurs."
            ) from None
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A pool of one process, which shows which job a dead process was running."""

    def __init__(self, environment: Mapping[str, str]):
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin, (environment,))
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self, function: Callable[[Job], Result], job: Job) -> Future:
        """Starts a job, and the process with the first job. Raises BrokenProcessPool if the process has died."""
        try:
            future = self._pool.submit(function, job)
        except OSError as error:  # a process that dies during its start has closed its pipe
            raise BrokenProcessPool(str(error)) from error
        if self._process is None:
            # Asking multiprocessing for its children would forget one that is dead already.
            self._process = next(iter((self._pool._processes or {}).values()), None)
        return future

    def exit_code(self) -> int | None:
        """Waits for the process to end and returns its exit code."""
        self._pool.shutdown()
        return self._process and self._process.exitcode

    def stop(self) -> None:
        """Ends the process at once."""
        if self._process is not None:
            self._process.kill()
        self._pool.shutdown()


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
