"""What follows from the judge's votes alone: consistency rates, and what filtering by uncertainty makes of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from whale_jax.evaluation.judge.verdicts import consistent, majority, usable
from whale_jax.evaluation.statistics import proportion

PERCENT = (20, 40, 60, 80, 100)  # of the pairs, those of lowest cumulative uncertainty, that are kept


def score(tasks: dict[str, Any]) -> dict[str, Any]:
    """Consistency of every task and of all.

    Args:
      tasks: by task {"scenario", "pairs": [{"votes", as `verdicts.read_vote` gives them, "uncertainty", …}]}.

    Returns:
      "tasks" as given, and "all", each with "total", "consistent", "inconsistent", "undecided", "rate" (see
      `statistics.proportion`; of the decided pairs) and "filter": {"percent", "kept", "decided", "rate"} for each of
      `PERCENT`. Each task keeps its own most certain pairs; "all" has those of all tasks together. "causes": votes
      without verdict by cause. "contradictions": votes whose own conclusion is not what their criteria come to.
    """
    report = {
        task: {"scenario": each["scenario"], "pairs": each["pairs"]} | _rates(each["pairs"])
        for task, each in tasks.items()
    }
    everything = [pair for each in tasks.values() for pair in each["pairs"]]
    ordered = {task: by_uncertainty(each["pairs"]) for task, each in tasks.items()}
    for task, pairs in ordered.items():
        report[task]["filter"] = [_kept({task: pairs}, percent) for percent in PERCENT]
    votes = [vote for pair in everything for vote in pair["votes"]]
    return {
        "tasks": report,
        "all": _rates(everything) | {"filter": [_kept(ordered, percent) for percent in PERCENT]},
        "causes": dict(Counter(vote["cause"] for vote in votes if "cause" in vote).most_common()),
        "contradictions": sum(vote["said"] not in (None, consistent(vote)) for vote in usable(votes)),
    }


def by_uncertainty(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Pairs from the most to the least certain, equal ones as they stand."""
    return sorted(pairs, key=lambda pair: pair["uncertainty"])


def broken(pair: dict[str, Any]) -> dict[str, int]:
    """How many of a pair's usable votes found each criterion broken; those that none did are left out."""
    found = Counter(key for vote in usable(pair["votes"]) for key, holds in vote["criteria"].items() if not holds)
    return dict(found.most_common())


def _rates(pairs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found = Counter(majority(pair["votes"]) for pair in pairs)
    decided = found[True] + found[False]
    return {
        "total": len(pairs),
        "consistent": found[True],
        "inconsistent": found[False],
        "undecided": found[None],
        "rate": proportion(found[True], decided),
    }


def _kept(tasks: dict[str, list[dict[str, Any]]], percent: int) -> dict[str, Any]:
    """What the most certain pairs of each task, ordered by certainty, come to together."""
    pairs = [pair for each in tasks.values() for pair in each[: max(1, round(percent * len(each) / 100))]]
    rates = _rates(pairs)
    decided = rates["consistent"] + rates["inconsistent"]
    return {"percent": percent, "kept": len(pairs), "decided": decided, "rate": rates["rate"]}
