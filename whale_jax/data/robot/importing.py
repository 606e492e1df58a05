"""`whale data import`: converts recordings (LeRobot, RLDS, a folder, another store) into an episode store."""

import contextlib
import dataclasses
import json
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.files import check_writable, stamp
from whale_jax.base.machine import free_memory
from whale_jax.base.progress import Progress
from whale_jax.data.contract.actions import statistics
from whale_jax.data.contract.episode import Episode
from whale_jax.data.contract.recorded import Reader, Recorded, broken, check_image_size
from whale_jax.data.robot.contract import EXAMPLES, Robot, load_robot
from whale_jax.data.robot.findings import Found
from whale_jax.data.robot.motion import Motion, action_spec, convert, sources, state_spec
from whale_jax.data.robot.readers import kind_of
from whale_jax.data.store.resume import resuming
from whale_jax.data.store.storage import episode_file, read_episode, record_of, write_episode, write_manifest
from whale_jax.data.store.store import EpisodeStore, open_store

POLICY, IMAGE_SIZE = "demonstration", 64
_RATES_DIFFER = 0.01
_SLUG = 60
MAX_DOUBTFUL_SHARE = 0.5  # of episodes that are unusual in one way and imported nevertheless


@dataclasses.dataclass(frozen=True)
class _Job:
    """One episode to write: its file in the store, its source, its converted motion, and its metadata."""

    file: str
    recorded: Recorded
    motion: Motion
    metadata: dict[str, Any]


def import_data(
    source: Path | str,
    root: Path | str,
    robot: Path | str | None = None,
    camera: str = "",
    image_size: int | None = None,
    valid: float = 0.1,
    test: float = 0.0,
    leave_out: Collection[str] = (),
    progress: bool = True,
) -> tuple[EpisodeStore, Found]:
    """Converts `source` into the episode store `root`.

    LeRobot data sets, folders and RLDS data sets of your own need the robot's contract. Known RLDS data sets and stores
    bring their own, and their splits. Every table is checked before the first picture is decoded. Complete episodes are
    kept, so the same call resumes after a kill, also with more episodes left out.

    Args:
      robot: YAML file, see configs/robots.
      camera: view to use if there are several.
      image_size: side of a frame in pixels; None keeps the size of a store, and is 64 for LeRobot and folders.
      valid, test: shares of the episodes for these splits, from the end of the source.
      leave_out: names of episodes to skip.

    Returns:
      The store, and what was found in the source.

    Raises:
      WhaleError: something is wrong with the source. The message says what, in which file and row, and how to fix it.
    """
    root = Path(root).expanduser()
    source = source if "://" in str(source) else Path(source).expanduser()
    kind = kind_of(source)
    check_writable(root, "--to=DIR")
    if image_size is not None:
        check_image_size(image_size)
    if root.resolve() == Path(source).resolve():
        raise WhaleError(f"{root} is the source itself; give --to another directory.")
    if not 0 <= valid + test < 1 or min(valid, test) < 0:
        raise WhaleError(f"Shares of {valid:g} for --valid and {test:g} for --test leave nothing to train on.")
    if kind.copies(source):
        for option, value in {"--robot": robot, "--camera": camera, "--leave-out": leave_out}.items():
            if value:
                raise WhaleError(
                    f"{source} is {kind.what}, whose actions, view and episodes are known; leave {option} out."
                )
        store, left_out = kind.copy(source, root, image_size, progress)
        return store, Found.of_store(store, kind.name, left_out)
    image_size = IMAGE_SIZE if image_size is None else image_size
    contract = load_robot(robot) if robot else None
    with contextlib.closing(kind.open(source, contract and contract.rate_hz)) as reader:
        if contract is None:
            raise _unknown_actions(reader)
        found, shared, jobs = _plan(reader, contract, camera, image_size, (valid, test), set(leave_out))
        _check_memory(jobs, image_size)
        _write_all(root, jobs, shared, progress)
    return open_store(root), found


def _check_memory(jobs: list[_Job], image_size: int) -> None:
    """Raises WhaleError if the frames of the longest episode do not fit into memory."""
    longest = max(jobs, key=lambda job: len(job.motion.rows))
    frames, free = len(longest.motion.rows), free_memory()
    if (needed := 3 * frames * image_size**2) > free:
        raise WhaleError(
            f"Episode {longest.recorded.name} has {frames} frames, which take {needed / 2**30:.1f} GiB at a side of "
            f"{image_size} pixels, and {free / 2**30:.1f} GiB are free; give a smaller --image-size."
        )


def _unknown_actions(reader: Reader) -> WhaleError:
    columns = "; ".join(f"{key}: {', '.join(names)}" for key, names in reader.columns.items()) or "none"
    return WhaleError(
        f"What the actions in {reader.root} mean is not known. Describe the robot once in YAML and name the file: "
        f"--robot=FILE.yaml; examples to start from: {', '.join(EXAMPLES)}. Columns that are there: {columns}."
    )


def _plan(
    reader: Reader, robot: Robot, camera: str, image_size: int, shares: tuple[float, float], leave_out: set[str]
) -> tuple[Found, dict[str, Any], list[_Job]]:
    """Reads and checks all tables. Returns the findings, the shared metadata, and the jobs."""
    for name in sorted(leave_out):
        if name not in reader.names:
            raise unknown_name(f"episode in {reader.root}", name, reader.names)
    camera = reader.choose_camera(camera or robot.camera)
    recordings = list(reader.episodes({*robot.action, *robot.state}, camera, leave_out))
    _check_doubts(reader, recordings)
    long_enough = [recorded for recorded in recordings if len(recorded.times) > 1]
    rate = robot.rate_hz or _only_rate(long_enough, robot)
    pairs = [(recorded, convert(robot, recorded, rate)) for recorded in long_enough]
    pairs = [(recorded, motion) for recorded, motion in pairs if len(motion.actions)]
    if not pairs:
        raise WhaleError(f"No episode of {reader.root} has two frames at {rate:g} Hz; nothing was written.")
    splits = split_names(len(pairs), *shares)
    spec = action_spec(robot, [m for (_, m), split in zip(pairs, splits, strict=True) if split == "train"], rate)
    state = state_spec(robot)
    shared = {
        "image_size": [image_size] * 2,
        "camera": camera,
        "action_spec": spec.to_json(),
        "state_spec": state.to_json() if state else None,
        "source": str(reader.root.resolve()),
        "shares": list(shares),
        "left_out": sorted(leave_out),
    }
    slugs = slugs_of(recorded.task for recorded, _ in pairs)
    numbers = {name: number for number, name in enumerate(reader.names)}
    jobs = []
    for (recorded, motion), split in zip(pairs, splits, strict=True):
        names = {"split": split, "task": slugs[recorded.task], "policy": POLICY}
        names["index"] = numbers[recorded.name]
        metadata = names | {"seed": 0, "instruction": recorded.task, "episode": recorded.name, "robot": robot.name}
        jobs.append(_Job(episode_file(**names), recorded, motion, metadata | shared | {"versions": _versions()}))
    causes = {
        "by --leave-out": len(leave_out),
        f"of fewer than two frames at {rate:g} Hz": len(recordings) - len(pairs),
    }
    return Found.of(reader, pairs, splits, spec, camera, causes, sources(robot, pairs[0][0])), shared, jobs


def _check_doubts(reader: Reader, recordings: list[Recorded]) -> None:
    """Raises WhaleError if so many episodes are unusual that it is no accident."""
    for note, count in Counter(note for recorded in recordings for note in recorded.doubts).items():
        if count > MAX_DOUBTFUL_SHARE * len(recordings) and count > 1:
            raise WhaleError(
                f"{count} of {len(recordings)} episodes of {reader.root} are ones {note}; up to "
                f"{MAX_DOUBTFUL_SHARE:.0%} are taken for accidents. Mend the data set, or leave some of these out."
            )


def _only_rate(recordings: list[Recorded], robot: Robot) -> float:
    """Returns the control rate of all episodes. Raises WhaleError naming the first two that differ."""
    for recorded in recordings[1:]:
        first = recordings[0]
        if abs(recorded.rate_hz / first.rate_hz - 1) > _RATES_DIFFER:
            slower = min(recorded.rate_hz, first.rate_hz)
            raise WhaleError(
                f"{first.file} was recorded at {first.rate_hz:.4g} Hz and {recorded.file} at {recorded.rate_hz:.4g} "
                f"Hz. Choose one rate for all in {robot.file}: rate_hz: {slower:.4g}"
            )
    return round(recordings[0].rate_hz, 3) if recordings else 1.0


def split_names(count: int, valid: float, test: float) -> list[str]:
    """Returns the split of each of `count` episodes. The last ones are for "valid" and, after those, "test".

    A share above 0 takes at least one episode. At least one is always left for training.
    """
    tests = min(max(1, round(test * count)), count - 1) if test else 0
    valids = min(max(1, round(valid * count)), count - 1 - tests) if valid else 0
    return ["train"] * (count - valids - tests) + ["valid"] * valids + ["test"] * tests


def slugs_of(texts: Iterable[str]) -> dict[str, str]:
    """Returns a different directory name for each text. Of texts with the same plain name, the first keeps it."""
    slugs: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for text in texts:
        if text not in slugs:
            plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_SLUG].strip("-") or "task"
            seen[plain] += 1
            slugs[text] = f"{plain}--{seen[plain]}" if seen[plain] > 1 else plain
    return slugs


def _write_all(root: Path, jobs: list[_Job], shared: dict[str, Any], progress: bool) -> None:
    """Writes the missing episodes, and then the manifest."""
    with resuming(root, {job.file for job in jobs}, shared, _unchanged_by_omission) as headers:
        _adopt(root, jobs, headers)
        missing = [job for job in jobs if job.file not in headers]
        there = len(jobs) - len(missing)
        with Progress(root.name, "Imported", "episodes", len(jobs), there, "frames", progress) as bar:
            for job, header in _written(root, missing):
                headers[job.file] = header
                bar.step(len(job.motion.rows))
        train = [job.motion.actions for job in jobs if job.metadata["split"] == "train"]
        columns = (np.concatenate([actions[:, d] for actions in train]) for d in range(train[0].shape[1]))
        lines = [record_of(job.file, headers[job.file]) for job in jobs]
        write_manifest(root, lines, versions=_versions(), **shared, statistics=statistics(columns))


def _unchanged_by_omission(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a store that stay the same where an episode is left out, which moves quantiles."""
    spec = settings["action_spec"]
    if isinstance(spec, dict) and spec.get("range_is") == "quantiles":
        spec = {key: value for key, value in spec.items() if key not in ("low", "high")}
    return {key: value for key, value in settings.items() if key != "left_out"} | {"action_spec": spec}


def _adopt(root: Path, jobs: list[_Job], headers: dict[str, dict[str, Any]]) -> None:
    """Describes episodes that are there anew, in place, where another choice of episodes has changed their split."""
    there = {header["metadata"].get("episode"): file for file, header in headers.items()}
    for job in jobs:
        file = there.get(job.recorded.name)
        found = headers[file]["metadata"] if file else {}
        metadata = job.metadata | {"versions": found.get("versions")}
        if file is None or file == job.file and found == json.loads(json.dumps(metadata)):
            continue
        episode = dataclasses.replace(read_episode(root / file), metadata=metadata)
        headers[job.file] = write_episode(root / job.file, episode)
        if file != job.file:
            (root / file).unlink()
            del headers[file]


def _written(root: Path, jobs: list[_Job]) -> Iterator[tuple[_Job, dict[str, Any]]]:
    """Yields (job, header) of each episode once it is on disk. It decodes pictures while others are compressed."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        pending: deque = deque()
        for job in jobs:
            _check_complete(job.recorded)
            pending.append((job, pool.submit(write_episode, root / job.file, _episode(job))))
            while len(pending) > workers:
                done, future = pending.popleft()
                yield done, future.result()
        for done, future in pending:
            yield done, future.result()


def _check_complete(recorded: Recorded) -> None:
    """Raises BrokenEpisode if an episode's table has changed since it was read, so that its last row may be cut."""
    table = Path(recorded.file)
    if recorded.stamp is not None and stamp(table) != recorded.stamp:
        raise broken(recorded.name, f"{table} was written to while it was read; import it once it is complete.")


def _episode(job: _Job) -> Episode:
    motion = job.motion
    try:
        frames = job.recorded.frames(motion.rows, job.metadata["image_size"][0])
    except WhaleError as error:
        raise broken(job.recorded.name, str(error)) from error
    return Episode(frames, motion.actions, motion.rewards, motion.success, job.metadata, motion.state)


def _versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide how a frame looks."""
    return {"av": version("av"), "numpy": version("numpy")}
