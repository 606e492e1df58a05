"""Records a Meta-World data set: chooses the missing episodes, plays them in parallel, and writes the manifest.

Free of JAX, so that the processes that play episodes start fast.
"""

import contextlib
import dataclasses
import itertools
import os
import traceback
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.pool import run_all
from whale_jax.base.progress import Progress
from whale_jax.data.contract.recorded import check_image_size
from whale_jax.data.metaworld import simulator as metaworld
from whale_jax.data.metaworld.rendering import find_gl
from whale_jax.data.metaworld.settings import RecordSettings
from whale_jax.data.store.resume import resuming
from whale_jax.data.store.storage import episode_file, record_of, write_episode, write_manifest
from whale_jax.data.store.store import EpisodeStore, open_store

# One thread per process, because the processes already fill the cores and more threads would compete for them.
_SINGLE = {"LP_NUM_THREADS": "0"} | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_simulators: dict[str, metaworld.Simulator] = {}  # of this process, for the current task; making one takes 0.3 s


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
            _simulators[job.task] = metaworld.Simulator(job.task, image_size=job.image_size, camera=settings.camera)
        episode = _simulators[job.task].rollout(job.policy, job.seed, settings.steps, settings.action_repeat)
        episode = dataclasses.replace(episode, metadata={**episode.metadata, **job.metadata})
        return write_episode(job.root / job.file, episode)
    except WhaleError:
        raise
    except Exception:
        raise WhaleError(f"{job.file} could not be recorded.\n{traceback.format_exc()}") from None


def episode_seed(seed: int, split: str, task: str, policy: str, index: int) -> int:
    """Returns the seed of one episode. It differs for every episode and does not depend on what else is recorded.

    Ranked policies share their seeds, so that none has luckier starts than another.
    """
    words = [zlib.crc32(word.encode()) for word in (split, task, *([] if split == "ranked" else [policy]))]
    return int(np.random.SeedSequence([seed, *words, index]).generate_state(1)[0] >> 1)


def _jobs(
    root: Path, settings: RecordSettings, policies: Collection[str] | None, image_size: int, seed: int
) -> list[Job]:
    """Returns a job for every episode that the arguments of `record` ask for."""
    jobs = []
    for task, (split, policy, number) in itertools.product(dict.fromkeys(settings.tasks), settings.counts()):
        for index in range(number if policies is None or policy in policies else 0):
            metadata = {"split": split, "index": index, "steps": settings.steps, "recording_seed": seed}
            file, own = episode_file(split, task, policy, index), episode_seed(seed, split, task, policy, index)
            jobs.append(Job(root, file, task, policy, own, settings, image_size, metadata))
    return jobs


def record(
    root: Path | str,
    *,
    tasks: Iterable[str],
    episodes: Mapping[str, int],
    near_misses: Mapping[str, int] | None = None,
    image_size: int = 64,
    camera: str = RecordSettings.camera,
    steps: int = RecordSettings.steps,
    action_repeat: int = RecordSettings.action_repeat,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = True,
    policies: Iterable[str] | None = None,
) -> EpisodeStore:
    """Records Meta-World episodes into `root`, in parallel processes, and opens the store.

    Complete episodes that exist already are kept. The same call therefore resumes after a kill, and other tasks can be
    added later.

    Args:
      episodes: number of episodes per task and policy, by split. "train" and "valid" use TRAIN_POLICIES, "test" the
        unseen TEST_POLICIES, and "ranked" the unseen RANKED_POLICIES.
      near_misses: number of episodes of the policy "near-miss" per task, for the splits "train" and "valid".
      image_size: side of a frame in pixels.
      steps: actions per episode; an episode has steps + 1 frames.
      action_repeat: simulator steps per action, of which there are 80 a second.
      seed: gives every episode its own seed.
      workers: number of processes; None uses one per core.
      policies: keeps only these policies of each split.

    Raises:
      WhaleError: a name is unknown, the store was recorded with other settings, the disk is full, there is no GL, or
        the process of an episode dies. No process and no partial file is left behind, and nothing complete is lost.
    """
    if workers is not None and workers < 0:
        raise WhaleError(f"{workers} processes record nothing; give 1 or more, or 0 for one per core.")
    settings = RecordSettings(tuple(tasks), episodes, near_misses or {}, steps, action_repeat, camera)
    policies = None if policies is None else list(policies)
    metaworld.check_names(policies=policies or ())
    check_image_size(image_size)
    root = Path(root)
    jobs = _jobs(root, settings, policies, image_size, seed)
    if not jobs:
        raise WhaleError(
            f"No episode was asked for: tasks {settings.tasks}, episodes {episodes}, near-misses {near_misses}, "
            f"policies {policies}."
        )
    shared = {"image_size": [image_size] * 2, "camera": camera, "steps": steps, "action_repeat": action_repeat}
    shared["recording_seed"] = seed
    with resuming(root, {job.file for job in jobs}, shared) as headers:
        missing = [job for job in jobs if job.file not in headers]
        if missing:
            headers |= _recorded(missing, len(jobs), workers or os.cpu_count() or 1, progress)
        write_manifest(
            root,
            [record_of(file, header) for file, header in headers.items()],
            action_spec=metaworld.action_spec(action_repeat).to_json(),
            state_spec=metaworld.STATE_SPEC.to_json(),
            versions=metaworld.versions(),
            **shared,
        )
    return open_store(root)


def _recorded(missing: list[Job], total: int, workers: int, progress: bool) -> dict[str, dict[str, Any]]:
    """Records the missing episodes of `total`, and returns their headers."""
    there, headers = total - len(missing), {}
    with Progress("Meta-World", "Recorded", "episodes", total, there, "frames", progress) as bar:
        bar.say(f"Recording {len(missing)} episodes; {there} are there already.")
        environment = {"MUJOCO_GL": find_gl(), **_SINGLE}
        results = run_all(_record, missing, workers, lambda job: f"recording {job.file}", environment)
        with contextlib.closing(results):
            for job, header in results:
                headers[job.file] = header
                bar.step(job.settings.steps + 1)
    return headers
