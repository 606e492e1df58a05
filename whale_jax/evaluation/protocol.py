"""The video protocol: which held-out clips are imagined, against which controls, and what is measured."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.base.settings import Settings, check_least
from whale_jax.data.store.store import EpisodeStore
from whale_jax.evaluation.report.films import encode, side_by_side, suffix
from whale_jax.evaluation.video import metrics as video
from whale_jax.evaluation.video.fvd import Collector
from whale_jax.imagination.world import Imagination, WorldModel
from whale_jax.nn import lpips

Pair = TypeVar("Pair")
SAMPLES = 1  # of every clip: nothing is the best of many


@dataclasses.dataclass(frozen=True)
class ProtocolSettings(Settings):
    """What is evaluated."""

    context: int = 2  # frames given to the model
    horizon: int = 16  # frames imagined
    episodes: int = 20  # clips for each task and policy
    batch_size: int = 20  # clips imagined at once
    start: int = -1  # first frame of every clip; -1 draws it from `seed`, one per clip
    seed: int = 0

    def __post_init__(self):
        check_least(self, context=1, horizon=1, episodes=1, batch_size=1, start=-1, seed=0)


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips of one task and policy: frames (E, C + n, H, W, 3) uint8, actions (E, C - 1 + n, A), rewards (E, n).

    `success` (E,) bool: whether the task was done at one of the n steps. `starts` names the initial state of each, the
    same for all policies of the task; None where policies share none.
    """

    task: str
    policy: str
    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    starts: tuple[int, ...] | None = None


def read_clips(store: EpisodeStore, settings: ProtocolSettings) -> list[Clips]:
    """Clips of every task and policy in a store.

    Raises:
      WhaleError: an episode is shorter than a clip, or the store is empty.
    """
    length = settings.context + settings.horizon
    groups = []
    for task in store.names("task"):
        for policy in store.select(tasks=task).names("policy"):
            chosen = store.select(tasks=task, policies=policy)
            clips = [_clip(chosen, i, length, settings) for i in range(min(len(chosen), settings.episodes))]
            starts = tuple(record["index"] for record in chosen.records[: len(clips)])
            # Episodes of this split alone are recorded from equal initial states.
            starts = starts if chosen.names("split") == ["ranked"] else None
            groups.append(Clips(task, policy, *(np.stack(parts) for parts in zip(*clips, strict=True)), starts))
    return groups


def _clip(store: EpisodeStore, index: int, length: int, settings: ProtocolSettings):
    episode = store.read(index)
    latest = len(episode.frames) - length
    if latest < max(settings.start, 0):
        raise WhaleError(
            f"Episode {store.records[index]['file']} has {len(episode.frames)} frames; a clip of {settings.context} "
            f"given and {settings.horizon} imagined frames starting at {max(settings.start, 0)} does not fit."
        )
    start = settings.start
    if start < 0:
        seed = [settings.seed, *store.records[index]["file"].encode()]
        start = int(np.random.default_rng(seed).integers(0, latest + 1))
    first = settings.context - 1
    return (
        episode.frames[start : start + length],
        episode.actions[start : start + length - 1],
        episode.rewards[start + first : start + length - 1],
        episode.success[start + first : start + length - 1].any(),
    )


def other_actions(groups: list[Clips]) -> list[np.ndarray]:
    """For each group the future actions of other episodes: those of the same task's next policy."""
    wrong = []
    for group in groups:
        same_task = [g for g in groups if g.task == group.task]
        following = same_task[(same_task.index(group) + 1) % len(same_task)]
        actions = following.actions
        if following is group:
            if len(actions) < 2:
                raise WhaleError(f"{group.task} has one held-out episode; wrong actions need another. Record more.")
            actions = np.roll(actions, 1, axis=0)
        wrong.append(actions[np.arange(len(group.actions)) % len(actions)])
    return wrong


def measure(real: np.ndarray, predicted: np.ndarray, moving: np.ndarray) -> dict[str, list[float | None]]:
    """Every measure by horizon of predicted against real films, both (E, n, H, W, 3); LPIPS where frames are large."""
    values = {
        "psnr": video.psnr(real, predicted),
        "ssim": video.ssim(real, predicted),
        "moving_psnr": video.moving_psnr(real, predicted, moving),
        "moving_ssim": video.moving_ssim(real, predicted, moving),
    }
    if min(real.shape[2:4]) >= lpips.MIN_SIDE:
        values["lpips"] = video.lpips(real, predicted)
        values["moving_lpips"] = video.moving_lpips(real, predicted, moving)
    means = {name: video.by_horizon(v).mean for name, v in values.items()}
    return {name: [None if x is None else round(x, 5) for x in mean] for name, mean in means.items()}


def compare(
    model: WorldModel, frames: np.ndarray, imagined: np.ndarray, **controls: np.ndarray
) -> tuple[dict[str, Any], dict[str, np.ndarray], np.ndarray]:
    """Imagined films beside what costs nothing (the last given frame) and what cannot be had (the real frames decoded).

    Args:
      frames: (E, C + n, H, W, 3), given and real ones; imagined: (E, n, H, W, 3); controls: further ones like it.

    Returns:
      {"episodes", "moving_share", measure: [by horizon], control: {measure: [by horizon]}}, the films by series,
      and the moving region (E, n, H, W).
    """
    n = imagined.shape[1]
    given, real = frames[:, :-n], frames[:, -n:]
    controls = {
        "repeat_last_frame": np.repeat(given[:, -1:], n, axis=1),
        "reconstruction": model.reconstruct(frames)[:, -n:],
        **controls,
    }
    moving = video.moving_region(real, given[:, -1])
    entry: dict[str, Any] = {"episodes": len(real), "moving_share": float(moving.mean())}
    entry |= measure(real, imagined, moving)
    entry |= {name: measure(real, films, moving) for name, films in controls.items()}
    return entry, {"model": imagined, **controls}, moving


def imagine(model: WorldModel, frames: np.ndarray, actions: np.ndarray, size: int, **options) -> Iterator[Imagination]:
    """What the model imagines of (E, C, …) frames and their actions, `size` at once; options as its `imagine` has."""
    for i in range(0, len(frames), size):
        yield model.imagine(frames[i : i + size], actions[i : i + size], **options)


def told(pairs: Sequence[Pair], doing: str, say: Callable[[str], Any]) -> Iterator[Pair]:
    """Each of some task-policy pairs; when it is done with, says so, and how many seconds are left."""
    started = time.perf_counter()
    for done, pair in enumerate(pairs, start=1):
        yield pair
        left = (time.perf_counter() - started) / done * (len(pairs) - done)
        say(f"{doing} {done} of {len(pairs)} task-policy pairs ({pair.task}, {pair.policy}), {left:.0f} s left")


def evaluate_video(
    model: WorldModel,
    store: EpisodeStore,
    settings: ProtocolSettings,
    output: Path,
    say: Callable[[str], Any] = lambda text: None,
    distance: Collector | None = None,
) -> dict[str, Any]:
    """Imagines every clip along its actions and along another episode's, and measures both beside the controls.

    Args:
      output: a film of each task and policy is written into `output`/films.
      distance: is given the films of all clips, for FVD.

    Returns:
      {task: {policy: {"episodes", "film", measure: [by horizon], control: {measure: [by horizon]}, …}}}.
    """
    results: dict[str, Any] = {}
    groups = read_clips(store, settings)
    for group, wrong in zip(told(groups, "evaluated", say), other_actions(groups), strict=True):
        entry = _evaluate_group(model, group, wrong, settings, output, distance)
        results.setdefault(group.task, {})[group.policy] = entry
    return results


def _evaluate_group(model, group: Clips, wrong: np.ndarray, settings, output: Path, distance) -> dict[str, Any]:
    c = settings.context
    mixed = np.concatenate([group.actions[:, : c - 1], wrong[:, c - 1 :]], axis=1)
    futures = list(imagine(model, group.frames[:, :c], group.actions, settings.batch_size))
    imagined = np.concatenate([f.frames for f in futures])
    misled = np.concatenate([f.frames for f in imagine(model, group.frames[:, :c], mixed, settings.batch_size)])
    entry, series, moving = compare(model, group.frames, imagined, wrong_actions=misled)
    if distance:
        distance.add(group.frames[:, c:], **{name: films for name, films in series.items() if films is not misled})
    if futures[0].rewards is not None:
        rewards = np.concatenate([f.rewards for f in futures])
        entry["reward_error"] = np.abs(rewards - group.rewards).mean(0).tolist()
    best = int(moving.mean((1, 2, 3)).argmax())
    name = f"films/video-{group.task}-{group.policy}"
    data = _film(group.frames[best], imagined[best], misled[best], c)
    entry["film"] = {
        "file": f"{name}{suffix(data)}",
        "caption": f"{group.task}, {group.policy}: the clip with most motion",
    }
    write(output / entry["film"]["file"], data)
    return entry


def _film(frames: np.ndarray, imagined: np.ndarray, misled: np.ndarray, context: int) -> bytes:
    """One clip, real, imagined, and imagined from other actions."""
    futures = [np.concatenate([frames[:context], film]) for film in (imagined, misled)]
    labels = ("real", "imagined", "other actions")
    return encode(side_by_side(frames, *futures, labels=labels, context=context))[0]
