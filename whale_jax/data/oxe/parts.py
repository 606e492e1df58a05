"""Where what is made of an RLDS data set lies, and how its parts are made: once, in parallel and resumable."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import locked
from whale_jax.base.pool import run_all
from whale_jax.base.process import user_cache
from whale_jax.base.progress import Progress
from whale_jax.data.rlds.read import RldsDataset

POOL_FROM_BYTES = 256 << 20  # less data is read before more processes have started
Work = Callable[[int, Path], int]  # maps a part's (number, path) to its number of episodes; can be pickled


def place(dataset: RldsDataset, cache: Path | str | None, what: str, key: str) -> Path:
    """Returns where an index or its like lies: next to the data, or in the cache.

    Raises:
      WhaleError: neither the data's directory nor a cache can be written.
    """
    if cache is None:
        beside = Path(os.fspath(dataset.path))
        if not dataset.remote and os.access(beside, os.W_OK):
            return beside / f".whale-{what}-{key}"
        if (home := user_cache()) is None:
            raise WhaleError(
                f"{beside} cannot be written and this user has no home, so there is no place for the index; name one: "
                "--config.data.index=DIR."
            )
        cache = home / "oxe"
    return Path(cache) / f"{dataset.name}-{dataset.version}-{what}-{key}"


def make_once(path: Path, done: Path, make: Callable[[], None]) -> None:
    """Calls `make` unless `done` exists, in one process at a time."""
    if done.exists():
        return
    lock = path.with_name(f"{path.name}.lock")
    with locked(lock, wait=True):
        if not done.exists():
            make()
        lock.unlink(missing_ok=True)


def make_parts(
    work: Work,
    parts: Path,
    names: list[str],
    label: tuple[str, str],
    workers: int,
    progress: bool,
    what: str,
) -> None:
    """Makes one file per name in the directory `parts`, of which those that exist are not made again.

    Args:
      work: writes a part.
      label: name of the progress bar, and what was done.
      workers: number of processes; 1 works in this one.
      what: describes the work, for the error message if a process dies.
    """
    parts.mkdir(parents=True, exist_ok=True)
    jobs = [(number, parts / name) for number, name in enumerate(names)]
    missing = [job for job in jobs if not job[1].exists()]
    with Progress(*label, "files", len(jobs), len(jobs) - len(missing), "episodes", progress) as bar:
        if min(workers, len(missing)) <= 1:
            for job in missing:
                bar.step(work(*job))
            return
        run = functools.partial(_run, work)
        with contextlib.closing(run_all(run, missing, workers, lambda _: what)) as results:
            for _, count in results:
                bar.step(count)


def _run(work: Work, job: tuple[int, Path]) -> int:
    return work(*job)
