"""The judge suite: does the imagined end agree with the real one for a vision-language model (docs/method.md §18)?

Every held-out clip is imagined to its end. The judge compares the last imagined frame with the last real one by the
criteria of the clip's task. Dimension keys: E clips of a task and policy, C given frames, n imagined frames.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from whale_jax.base.errors import WhaleError
from whale_jax.base.files import cached
from whale_jax.evaluation.clips import Clips, ProtocolSettings, imagine, read_clips, with_progress
from whale_jax.evaluation.judge import section
from whale_jax.evaluation.judge.answers import enlargement, keep_picture, picture_file
from whale_jax.evaluation.judge.asking import JudgeSettings, Question, collect, tokens_of_image
from whale_jax.evaluation.judge.consistency import score
from whale_jax.evaluation.judge.scenarios import Scenario, read_scenarios, scenario_of
from whale_jax.evaluation.suite import Job, Section, Suite
from whale_jax.imagination.uncertainty.retracing import Retracing

FOLDER = "judge"  # folder for pictures, requests and imagined pairs in the directory of the evaluation
DEFINITIONS = {
    "consistent": "most votes that hold a verdict find every criterion true, whatever they concluded from that",
    "undecided": "a tie, or no vote with a verdict; not part of the rate",
    "rate": "consistent pairs of those decided, with Wilson's 95 % interval",
    "uncertainty": "of the imagined steps, summed over the horizon",
    "filter": "of each task the share of pairs with the lowest uncertainty is kept",
}


class Judge(Suite):
    """The suite that imagines every clip and has its end judged.

    It stores pictures, answers and imagined pairs in `output`/judge, so that the same call asks nothing twice. Clips
    have as many given frames as retracing needs, if the episodes are long enough.

    The result is that of `consistency.score`, where each pair has "policy", "clip", the files "real" and "imagined",
    "uncertainty" and "votes". The result also holds "estimate" (the kind of uncertainty), "cost" (see
    `asking.collect`), "scenarios", "settings", "clips", "definitions", "notes" and "failed".
    """

    name, title, Settings = "judge", "Consistency", JudgeSettings
    folders = (f"{FOLDER}/pictures",)

    def check_settings(self, settings: JudgeSettings) -> None:
        settings.check()
        read_scenarios(settings.criteria)

    def run(self, job: Job) -> dict[str, Any]:
        settings = job.settings
        scenarios = read_scenarios(settings.criteria)
        pairs, found = _imagine_all(job)
        used = {task: scenario_of(task, scenarios) for task in dict.fromkeys(pair["task"] for pair in pairs)}
        # Ordered by clip, so that a budget that runs out still leaves some votes on every task and policy.
        order = sorted(pairs, key=lambda pair: pair["clip"])
        questions = [
            Question(used[pair["task"]], pair["real"], pair["imagined"], vote)
            for pair in order
            for vote in range(settings.votes)
        ]
        votes, cost = collect(questions, settings, job.output / FOLDER, found.pop("image_tokens"), job.say)
        for i, pair in enumerate(order):
            pair["votes"] = votes[i * settings.votes : (i + 1) * settings.votes]
        report = score({task: _task(task, used[task], pairs) for task in used})
        stopped = cost.pop("stopped")
        texts = {each.name: {"instruction": each.instruction, **dict(each.criteria)} for each in used.values()}
        return report | {
            "cost": cost,
            "scenarios": texts,
            "settings": settings.to_dict(),
            "definitions": DEFINITIONS,
            **found,
            "notes": found["notes"] + _notes(report, cost),
            "failed": [stopped] if stopped else [],
        }

    def figures(self, result: dict[str, Any]) -> dict[str, float | None]:
        return {"consistent": result["all"]["rate"][0]}

    def rescore(self, result: dict[str, Any]) -> dict[str, Any]:
        return result | score(result["tasks"])

    def statement(self, result: dict[str, Any]) -> str:
        return section.statement(result)

    def outcome(self, result: dict[str, Any]) -> dict[str, Any]:
        tasks = {
            task: {name: value for name, value in entry.items() if name != "pairs"}
            for task, entry in result["tasks"].items()
        }
        kept = {name: result[name] for name in ("all", "estimate", "cost", "notes", "failed")}
        return {"judge": kept | {"tasks": tasks}}

    def sections(self, result: dict[str, Any], directory: Path) -> list[Section]:
        return [Section(self.name, self.title, section.judge_section(result, directory))]


def _imagine_all(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Returns every pair, and {"clips", "estimate", "image_tokens", "notes"}.

    The uncertainty is that of retracing, or the entropy where retracing is impossible.
    """
    clips = job.clips
    wanted = dataclasses.replace(clips, context=max(clips.context, Retracing().context))
    shortest = min((record["length"] + 1 for record in job.store.records), default=0)
    if wanted.context + wanted.horizon > shortest:
        why = f"episodes of {shortest} frames leave fewer than {wanted.context} before {wanted.horizon} imagined ones"
    else:
        try:
            return _pairs(job, wanted, "retracing"), _facts(job, wanted, "retracing", [])
        except WhaleError as error:
            why = str(error)
    note = f"The uncertainty is the entropy alone, for retracing cannot be had here: {why.rstrip('.')}."
    return _pairs(job, clips, "entropy"), _facts(job, clips, "entropy", [note])


def _facts(job: Job, clips: ProtocolSettings, estimate: str, notes: list[str]) -> dict[str, Any]:
    size = job.model.frame_size
    tokens = tokens_of_image(*(enlargement(job.settings.side, *size) * length for length in size))
    return {"clips": clips.to_dict(), "estimate": estimate, "image_tokens": tokens, "notes": notes}


def _pairs(job: Job, clips: ProtocolSettings, estimate: str) -> list[dict[str, Any]]:
    """Returns {"task", "policy", "clip", "real", "imagined", "uncertainty"} for every clip, with pictures by name."""
    found, model, side = [], job.model, job.settings.side
    for group in with_progress(read_clips(job.store, clips), "judge: imagined", job.say):
        parts = [model.fingerprint, model.described, clips.to_dict(), estimate, side]
        parts += [group.frames, group.actions]
        make = functools.partial(_imagine, model, group, clips, estimate, side, job.output / FOLDER)
        entry = cached(job.output, f"{FOLDER}/pairs/{group.task}/{group.policy}.json", parts, make)
        names = {"task": group.task, "policy": group.policy}
        rows = zip(entry["real"], entry["imagined"], entry["uncertainty"], strict=True)
        for i, (real, imagined, uncertainty) in enumerate(rows):
            found.append({**names, "clip": i, "real": real, "imagined": imagined, "uncertainty": uncertainty})
    return found


def _imagine(model, group: Clips, clips: ProtocolSettings, estimate: str, side: int, root: Path) -> dict[str, Any]:
    """Imagines the clips of one task and policy, and returns their last frames as pictures and their uncertainties.

    Uncertainties are summed over the imagined steps.
    """
    given = group.frames[:, : clips.context]
    future = imagine(model, given, group.actions, clips.batch_size, uncertainty=estimate)
    entry = {
        "real": [keep_picture(root, frame, side) for frame in group.frames[:, -1]],
        "imagined": [keep_picture(root, frame, side) for frame in future.frames[:, -1]],
        "uncertainty": future.accumulated[:, -1].astype(float).tolist(),
    }
    return entry | {"films": [f"{FOLDER}/{picture_file(name)}" for name in (*entry["real"], *entry["imagined"])]}


def _task(task: str, scenario: Scenario, pairs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a task's pairs as metrics.json holds them."""
    files = ("real", "imagined")
    mine = [
        {name: value for name, value in pair.items() if name != "task"}
        | {name: f"{FOLDER}/{picture_file(pair[name])}" for name in files}
        for pair in pairs
        if pair["task"] == task
    ]
    return {"scenario": scenario.name, "pairs": mine}


def _notes(report: dict[str, Any], cost: dict[str, Any]) -> list[str]:
    """Returns notes for the reader on the votes."""
    notes = []
    if causes := report["causes"]:
        told_apart = ", ".join(f"{count} {cause}" for cause, count in causes.items())
        notes.append(f"{sum(causes.values())} votes hold no verdict and count for neither side: {told_apart}.")
    if report["contradictions"]:
        notes.append(f"{report['contradictions']} votes concluded otherwise than their criteria; the criteria count.")
    if cost["changed"]:
        notes.append(f"The endpoint does not take these parts of a request as they are: {', '.join(cost['changed'])}.")
    if cost["uncounted"]:
        notes.append(f"{cost['uncounted']} answers came without a count of tokens and are taken as estimated.")
    return notes
