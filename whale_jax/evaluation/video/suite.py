"""The video suite: how good are imagined frames (docs/method.md §12)? Imagines and measures held-out clips."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import write
from whale_jax.base.settings import Settings
from whale_jax.base.workdir import Workdir
from whale_jax.evaluation.clips import Clips, imagine, read_clips, with_progress
from whale_jax.evaluation.report import page
from whale_jax.evaluation.report.films import encode, side_by_side, suffix
from whale_jax.evaluation.report.words import signed
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.evaluation.video import section, summary
from whale_jax.evaluation.video.fvd import Collector
from whale_jax.evaluation.video.measures import compare


@dataclasses.dataclass(frozen=True)
class VideoSettings(Settings):
    """The settings of the video suite, which measures the clips of `Job.clips`."""

    fvd: bool = True  # whether to compute FVD, about a second per clip and series; a training run leaves it out


class Video(Suite):
    """The suite that imagines every clip along its own actions and another episode's, and measures both and controls.

    The result is {"tasks": {task: {policy: {"episodes", "split", "film", measure: [by horizon], control:
    {measure: [by horizon]}, …}}}, "fvd"}. `metrics.json` holds its parts as "video" and "fvd".
    """

    name, title, Settings = "video", "Accuracy", VideoSettings

    def run(self, job: Job) -> dict[str, Any]:
        distance = Collector(Workdir(job.output).features, job.say) if job.settings.fvd else None
        tasks: dict[str, Any] = {}
        groups = read_clips(job.store, job.clips)
        for group, wrong in zip(with_progress(groups, "evaluated", job.say), other_actions(groups), strict=True):
            tasks.setdefault(group.task, {})[group.policy] = _evaluate_group(job, group, wrong, distance)
        return {"tasks": tasks} | ({"fvd": distance.report()} if distance else {})

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        rows = summary.summarise(result["tasks"]).values()
        return {name: summary.mean(row[name] for row in rows) for name in ("moving_psnr", "gain")}

    def from_metrics(self, metrics) -> dict[str, Any] | None:
        if "video" not in metrics:
            return None
        return {"tasks": metrics["video"]} | ({"fvd": metrics["fvd"]} if "fvd" in metrics else {})

    def to_metrics(self, result: dict[str, Any]) -> dict[str, Any]:
        return {"video": result["tasks"]} | {name: result[name] for name in ("fvd",) if name in result}

    def check_result(self, result: dict[str, Any]) -> None:
        summary.check_cells(result["tasks"])

    def unmeasured(self, result: dict[str, Any]) -> list[str]:
        outcome = result.get("fvd", {}).get("outcome", "ok")
        return [] if outcome == "ok" else [f"FVD: {outcome}"]

    def statement(self, result: dict[str, Any]) -> str:
        return summary.statement(result["tasks"])

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        return summary.summarise(result["tasks"]) | {name: result[name] for name in ("fvd",) if name in result}

    def tiles(self, result: dict[str, Any]) -> list[tuple[str, str]]:
        horizon, rows = summary.usual_horizon(result["tasks"]), summary.summarise(result["tasks"]).values()
        gains = [row["gain"] for row in rows if row["gain"] is not None]
        losses = [
            row["moving_psnr"] - row["wrong_actions"]
            for row in rows
            if row["moving_psnr"] is not None and row["wrong_actions"] is not None
        ]
        cells = summary.cells_of(result["tasks"])
        similarity = summary.mean(summary.value_at(cell, "model", "ssim", horizon) for cell in cells)
        tiles = []
        if gains:
            tiles.append(("over repeating the last frame, mean of tasks", signed(summary.mean(gains))))
            tiles.append(("over repeating the last frame, weakest task", signed(min(gains))))
        if losses:
            tiles.append(("with another episode's actions", signed(-summary.mean(losses))))
        if similarity is not None:
            tiles.append((f"SSIM at horizon {horizon}", page.number(similarity, 3)))
        return tiles

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        tasks, horizon = result["tasks"], summary.usual_horizon(result["tasks"])
        return [
            Section("films", "Films", section.films_section(tasks, directory, horizon)),
            Section("accuracy", self.title, section.accuracy_section(tasks, result.get("fvd"), horizon)),
        ]


def other_actions(groups: list[Clips]) -> list[np.ndarray]:
    """Returns actions of other episodes for each group: those of the same task's next policy.

    Raises:
      WhaleError: a task has only one episode.
    """
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


def _evaluate_group(job: Job, group: Clips, wrong: np.ndarray, distance: Collector | None) -> dict[str, Any]:
    model, c, size = job.model, job.clips.context, job.clips.batch_size
    mixed = np.concatenate([group.actions[:, : c - 1], wrong[:, c - 1 :]], axis=1)
    future = imagine(model, group.frames[:, :c], group.actions, size)
    misled = imagine(model, group.frames[:, :c], mixed, size).frames
    entry, series, moving = compare(model, group.frames, future.frames, wrong_actions=misled)
    if distance:
        distance.add(group.frames[:, c:], **{name: films for name, films in series.items() if films is not misled})
    entry["split"] = ", ".join(job.store.select(tasks=group.task, policies=group.policy).names("split"))
    if future.rewards is not None:
        entry["reward_error"] = np.abs(future.rewards - group.rewards).mean(0).tolist()
    if job.films:
        best = int(moving.mean((1, 2, 3)).argmax())
        data = _film(group.frames[best], future.frames[best], misled[best], c)
        name = f"films/video-{group.task}-{group.policy}{suffix(data)}"
        write(job.output / name, data)
        entry["film"] = {"file": name, "caption": f"{group.task}, {group.policy}: the clip with most motion"}
    return entry


def _film(frames: np.ndarray, imagined: np.ndarray, misled: np.ndarray, context: int) -> bytes:
    """Encodes a film of one clip: real, imagined, and imagined from other actions."""
    futures = [np.concatenate([frames[:context], film]) for film in (imagined, misled)]
    labels = ("real", "imagined", "other actions")
    return encode(side_by_side(frames, *futures, labels=labels, context=context))[0]
