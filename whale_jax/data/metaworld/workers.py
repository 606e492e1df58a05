"""Records episodes in parallel. Free of JAX, so that its processes start fast."""

import dataclasses
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.pool import run_all
from whale_jax.data.metaworld.rendering import find_gl
from whale_jax.data.metaworld.settings import RecordSettings
from whale_jax.data.metaworld.simulator import Simulator
from whale_jax.data.store.storage import write_episode

# One thread per process, because the processes already fill the cores and more threads would compete for them.
_SINGLE = {"LP_NUM_THREADS": "0"} | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_simulators: dict[str, Simulator] = {}  # of this process, for the current task; making one takes 0.3 s


@dataclasses.dataclass(frozen=True)
class Job:
    """One episode to record: its place in the store, task, policy, seed, settings, side in pixels and metadata."""

    root: Path
    file: str
    task: str
    policy: str
    seed: int
    settings: RecordSettings
    image_size: int
    metadata: dict[str, Any]


def _record(job: Job) -> dict[str, Any]:
    """Simulates and writes an episode, and returns its header."""
    settings = job.settings
    try:
        if job.task not in _simulators:
            while _simulators:
                _simulators.popitem()[1].close()
            _simulators[job.task] = Simulator(job.task, image_size=job.image_size, camera=settings.camera)
        episode = _simulators[job.task].rollout(job.policy, job.seed, settings.steps, settings.action_repeat)
        episode = dataclasses.replace(episode, metadata={**episode.metadata, **job.metadata})
        return write_episode(job.root / job.file, episode)
    except WhaleError:
        raise
    except Exception:
        raise WhaleError(f"{job.file} could not be recorded.\n{traceback.format_exc()}") from None


def record_all(jobs: list[Job], count: int) -> Generator[tuple[Job, dict[str, Any]], None, None]:
    """Runs the jobs in `count` processes, and yields each with its header when it is done.

    Raises:
      WhaleError: an episode fails or its process dies. The message names the episode, and no process is left behind.
    """
    return run_all(_record, jobs, count, lambda job: f"recording {job.file}", {"MUJOCO_GL": find_gl(), **_SINGLE})
