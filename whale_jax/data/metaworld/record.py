"""Records a Meta-World data set: chooses the missing episodes, shows progress, and writes the manifest."""

import contextlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.files import locked
from whale_jax.base.progress import Progress
from whale_jax.data.metaworld import simulator as metaworld
from whale_jax.data.metaworld.settings import SPLIT_POLICIES, RecordSettings
from whale_jax.data.metaworld.workers import Job, record_all
from whale_jax.data.store.resume import check_settings, existing
from whale_jax.data.store.storage import episode_file, record_of, remove_partial, write_manifest
from whale_jax.data.store.store import EpisodeStore, open_store


def episode_seed(seed: int, split: str, task: str, policy: str, index: int) -> int:
    """Returns the seed of one episode. It differs for every episode and does not depend on what else is recorded.

    Ranked policies share their seeds, so that none has luckier starts than another.
    """
    words = [zlib.crc32(word.encode()) for word in (split, task, *([] if split == "ranked" else [policy]))]
    return int(np.random.SeedSequence([seed, *words, index]).generate_state(1)[0] >> 1)


def plan(
    root: Path,
    *,
    tasks: Iterable[str],
    episodes: dict[str, int],
    policies: Iterable[str] | None,
    image_size: int,
    camera: str,
    steps: int,
    action_repeat: int,
    seed: int,
) -> list[Job]:
    """Returns a job for every episode that the arguments of `record` ask for.

    Raises:
      WhaleError: a name does not exist.
    """
    metaworld.check_names(tasks=tasks, policies=policies or (), camera=camera)
    for split in episodes:
        if split not in SPLIT_POLICIES:
            raise unknown_name("split", split, SPLIT_POLICIES)
    if steps < 1 or action_repeat < 1 or image_size < 8 or min(episodes.values(), default=0) < 0:
        raise WhaleError(
            f"Nothing can be recorded with steps {steps}, action repeat {action_repeat}, image size {image_size}, "
            f"episodes {episodes}."
        )
    jobs = []
    for task in dict.fromkeys(tasks):
        for split, number in episodes.items():
            for policy in SPLIT_POLICIES[split]:
                if policies is not None and policy not in policies:
                    continue
                for index in range(number):
                    own_seed = episode_seed(seed, split, task, policy, index)
                    metadata = {"split": split, "index": index, "steps": steps, "recording_seed": seed}
                    file = episode_file(split, task, policy, index)
                    settings = (steps, action_repeat, image_size, camera)
                    jobs.append(Job(root, file, task, policy, own_seed, *settings, metadata))
    if not jobs:
        raise WhaleError(f"No episode was asked for: tasks {tasks}, episodes {episodes}, policies {policies}.")
    return jobs


def record(
    root: Path | str,
    *,
    tasks: Iterable[str],
    episodes: dict[str, int],
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
    root, tasks = Path(root), list(tasks)
    policies = None if policies is None else list(policies)
    shared = {"image_size": image_size, "camera": camera, "steps": steps, "action_repeat": action_repeat, "seed": seed}
    jobs = plan(root, tasks=tasks, episodes=episodes, policies=policies, **shared)
    with locked(root / ".lock"):
        headers = existing(root, {job.file for job in jobs})
        settings = {
            "image_size": [image_size] * 2,
            "camera": camera,
            "steps": steps,
            "action_repeat": action_repeat,
            "recording_seed": seed,
        }
        check_settings(root, headers, settings)
        remove_partial(root)
        missing = [job for job in jobs if job.file not in headers]
        _record_missing(root, jobs, missing, headers, workers or os.cpu_count() or 1, progress)
        write_manifest(
            root,
            [record_of(file, header) for file, header in headers.items()],
            action_spec=metaworld.action_spec(action_repeat),
            state_spec=metaworld.STATE_SPEC.to_json(),
            versions=metaworld.versions(),
            **settings,
        )
    return open_store(root)


def _record_missing(root, jobs, missing, headers, workers, progress) -> None:
    """Deletes what an interrupted process left half-written, records the `missing` episodes and adds their headers."""
    if not missing:
        return
    there = len(jobs) - len(missing)
    try:
        with Progress("Meta-World", "Recorded", "episodes", len(jobs), there, "frames", progress) as bar:
            bar.say(f"Recording {len(missing)} episodes; {there} are there already.")
            with contextlib.closing(record_all(missing, workers)) as recorded:
                for job, header in recorded:
                    headers[job.file] = header
                    bar.step(job.steps + 1)
    finally:
        remove_partial(root)
