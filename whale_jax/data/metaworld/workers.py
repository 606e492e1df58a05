"""Processes that record episodes side by side. Free of JAX, so that they start fast."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.data.metaworld.rendering import find_gl
from whale_jax.data.metaworld.simulator import Simulator
from whale_jax.data.store.storage import write_episode


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode to record: where to, of what, with which seed and settings."""

    root: Path
    file: str
    task: str
    policy: str
    seed: int
    steps: int
    action_repeat: int
    image_size: int
    camera: str
    metadata: dict[str, Any]

    def run(self, simulator: Simulator) -> dict[str, Any]:
        """Simulates and writes the episode; its header."""
        episode = simulator.rollout(self.policy, self.seed, self.steps, self.action_repeat)
        episode = dataclasses.replace(episode, metadata={**episode.metadata, **self.metadata})
        return write_episode(self.root / self.file, episode)


def _work(pipe: Connection) -> None:
    """A worker's life: one simulator, kept while jobs are of the same task; ends when the parent does."""
    # Ctrl-C reaches every process of the terminal; the parent alone answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    simulator = None
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = pipe.recv()
            try:
                if simulator is None or simulator.task != job.task:
                    if simulator is not None:
                        simulator.close()
                    simulator = Simulator(job.task, image_size=job.image_size, camera=job.camera)
                answer = ("done", job.run(simulator))
            except WhaleError as error:
                answer = ("error", str(error))
            except Exception:
                answer = ("error", f"{job.file} could not be recorded.\n{traceback.format_exc()}")
            pipe.send(answer)
    if simulator is not None:
        simulator.close()


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for the processes started inside; ours are put back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


class _Worker:
    """A process, our end of its pipe, and the job it is busy with."""

    def __init__(self, context):
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.task: str | None = None

    def give(self, waiting: dict[str, deque[Job]]) -> None:
        """Hands over the next job: of the task at hand, or of the task with the most jobs left."""
        self.job = None
        left = {task: jobs for task, jobs in waiting.items() if jobs}
        if not left:
            return
        if self.task not in left:
            self.task = max(left, key=lambda task: len(left[task]))
        self.job = left[self.task].popleft()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(self.job)

    def answer(self) -> dict[str, Any]:
        """The header of the finished episode; WhaleError when it failed or the process died."""
        try:
            kind, value = self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(10)
            raise WhaleError(
                f"The process recording {self.job.file} died (exit code {self.process.exitcode}; -9 often "
                "means that memory ran out). Complete episodes are kept: run the same command again, with "
                "fewer workers if it recurs."
            ) from None
        if kind == "error":
            raise WhaleError(value)
        return value

    def stop(self) -> None:
        """Ends the process, at once if need be."""
        self.pipe.close()
        self.process.terminate()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def record_all(jobs: list[Job], count: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Runs the jobs in `count` processes; yields each with its header when it is done.

    Raises WhaleError naming the episode when one fails or its process dies. No process is left behind.
    """
    waiting: dict[str, deque[Job]] = {}
    for job in jobs:
        waiting.setdefault(job.task, deque()).append(job)
    # One thread each: the processes already fill the cores, and llvmpipe's threads would fight over them.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    context = multiprocessing.get_context("spawn")
    workers: list[_Worker] = []
    try:
        with _environment(MUJOCO_GL=find_gl(), LP_NUM_THREADS="0", **single):
            for _ in range(min(count, len(jobs))):
                workers.append(_Worker(context))
        for worker in workers:
            worker.give(waiting)
        while busy := {w.pipe: w for w in workers if w.job}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]
                header, job = worker.answer(), worker.job
                worker.give(waiting)
                yield job, header
    finally:
        for worker in workers:
            worker.stop()
