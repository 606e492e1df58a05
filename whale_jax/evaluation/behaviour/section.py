"""The report's section on behaviour: what the embedding says, what it is worth, and a map of it."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from whale_jax.evaluation.behaviour.measures import EXPERT, RANDOM, above_chance
from whale_jax.evaluation.report import page, parts
from whale_jax.evaluation.report.scatter import scatter

KINDS = {"seen": "policies of training", "unseen": "unseen policies"}
# What the paper says of its Figure 15, for each of the claims that a probe tests, and whether the probe should succeed.
PAPER = {
    "policies of a task": ("different policies of one task can be told apart", True),
    "experts of the tasks": ("the experts of different tasks can be told apart", True),
    "random of the tasks": ("the random policies of different tasks cannot be told apart", False),
}


def share(values: list[float | None]) -> str:
    """Returns [value, low, high] as `0.46 [0.31, 0.58]`."""
    return page.interval(values)


def difference(values: list[float | None]) -> str:
    """Returns [value, low, high] of a difference in nats as `+0.0002 [−0.0001, +0.0004]`."""
    if None in values:
        return "undefined"
    value, low, high = (f"{each:+.4f}".replace("-", "\N{MINUS SIGN}") for each in values)
    return f"{value} [{low}, {high}]"


def statement(report: dict[str, Any]) -> str:
    """Returns the outcome in plain sentences, whether good or bad."""
    sentences = [
        f"What is inferred of the policy, z, has an entropy of {report['entropy']:.1f} of at most "
        f"{report['largest_entropy']:.1f} nats."
    ]
    if report["probe"]:
        told = ", ".join(
            f"the {name} in {share(each['accuracy'])} of the clips (untrained {share(each['untrained'])}, chance "
            f"{each['chance']:.2f})"
            for name, each in report["probe"].items()
        )
        sentences.append(f"From held-out episodes of {KINDS[report['policies']]}, a linear probe reads off it {told}.")
    for kind, each in report["cross_entropy"].items():
        own = next(iter(each["mean"].values()))
        worse = "; ".join(f"{name} {difference(values)}" for name, values in each["worse"].items())
        sentences.append(
            f"On {KINDS[kind]} the dynamics' cross-entropy is {own[0]:.4f} nats a token with a clip's own z, and this "
            f"much higher with {worse}."
        )
    warnings = [f"Warning: {' '.join(report['warnings'])}"] if report["warnings"] else []
    return " ".join([*sentences, *report["notes"], *warnings])


def behaviour_section(report: dict[str, Any]) -> str:
    """Returns the section: probes, the paper's claims, cross-entropies, and maps by policy and by task.

    Args:
      report: `behaviour` of metrics.json.
    """
    kind = KINDS[report["policies"]]
    body = [
        "<p>The dynamics are given z, what the model infers at every step of how the robot is driven. It is worth "
        "something if the policy can be read off it, and if frames are predicted better with it than with that of "
        "another clip.</p>\n",
        *(f'<p class="note"><b>{escape(text)}</b></p>\n' for text in report["warnings"]),
        *(f'<p class="note">{escape(text)}</p>\n' for text in report["notes"]),
        f"<p>At a clip's last frame the inferred distribution has an entropy of {page.number(report['entropy'], 1)} "
        f"nats; a uniform one would have {page.number(report['largest_entropy'], 1)}.</p>\n",
    ]
    if report["probe"]:
        body.append(f"<h3>What can be read off z, {kind}</h3>\n{_probes(report['probe'])}")
    if report["cross_entropy"]:
        body.append(f"<h3>What z is worth to the predictions</h3>\n{_worth(report['cross_entropy'])}")
    if points := report.get("map"):
        body.append(f"<h3>A map of z</h3>\n{_maps(points)}")
    if sentences := _claims(report["claims"]):
        items = "".join(f"<li>{escape(text)}</li>" for text in sentences)
        body.append(f"<h3>What the paper reads off such a map</h3>\n<ul>{items}</ul>\n")
    body.append(f"<details><summary>What each figure is</summary>{page.facts(report['definitions'])}</details>")
    return page.section("embedding", "Is behaviour learnt?", "\n".join(body))


def _probes(probes: Mapping[str, Any]) -> str:
    rows = []
    for name, each in probes.items():
        shares = "".join(f"<td>{share(each[key])}</td>" for key in ("accuracy", "untrained", "gain"))
        controls = f"<td>{page.number(each['chance'])}</td><td>{page.number(each['majority'])}</td>"
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{shares}{controls}<td>{each["labels"]}</td></tr>\n')
    head = parts.head("", "right", "untrained", "gain", "chance", "most frequent", "labels")
    return page.table("A linear probe's share of right clips, episodes apart, 95 % intervals", head, rows)


def _worth(cross_entropy: Mapping[str, Any]) -> str:
    rows = []
    for kind, each in cross_entropy.items():
        for i, (name, mean) in enumerate(each["mean"].items()):
            worse = difference(each["worse"][name]) if name in each["worse"] else ""
            rows.append(
                f'{parts.group_head(KINDS[kind], i)}<td class="text">{escape(name)}</td>'
                f"<td>{page.number(mean[0], 4)}</td><td>{worse}</td><td>{'' if i else each['clips']}</td></tr>\n"
            )
    head = parts.head("", "<", "nats a token", "worse than own, paired", "clips")
    return page.table("The dynamics' cross-entropy on held-out clips, 95 % intervals", head, rows)


def _maps(found: Mapping[str, Any]) -> str:
    points = np.array(found["points"])
    tasks, policies = np.array(found["tasks"]), np.array(found["policies"])
    everything = np.ones(len(points), bool)
    views = [("every clip, by policy", everything, policies), ("every clip, by task", everything, tasks)]
    for policy in (EXPERT, RANDOM):
        if (own := policies == policy).any() and len(np.unique(tasks)) > 1:
            views.append((f"the {policy} policy alone, by task", own, tasks))
    figures = [
        (title, scatter(f"Map of z, {title}", {name: points[own & (by == name)] for name in np.unique(by)}, points))
        for title, own, by in views
    ]
    return f"<p>Every point is a clip; neighbours are clips with a like z.</p>\n{parts.figures(figures)}"


def _claims(found: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each of the paper's claims that the episodes allow to test."""
    sentences = []
    for name, (says, succeeds) in PAPER.items():
        if name in found:
            each = found[name]
            verdict = "So it is here" if above_chance(each) == succeeds else "Not so here"
            sentences.append(
                f"The paper: {says}. {verdict}: a probe is right in {share(each['accuracy'])} of the clips, "
                f"in {share(each['untrained'])} before any training, and chance is {each['chance']:.2f}."
            )
    for policy, place in found.get("noisy", {}).items():
        inside = 0 < place["position"] < 1 and place["off"] < 0.5
        verdict = "So it is here" if inside else "Not so here"
        sentences.append(
            f"The paper: a noisy expert lies between the expert and the random policy. {verdict} for {policy}: it lies "
            f"at {page.number(place['position'])} of the way, {page.number(place['off'])} of the way's length off the "
            "line."
        )
    return sentences
