"""Consistency rates from the judge's votes, with and without filtering by uncertainty."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from whale_jax.evaluation.judge.verdicts import consistent, majority, usable
from whale_jax.evaluation.statistics import proportion

PERCENT = (20, 40, 60, 80, 100)  # shares of the pairs to keep, those of lowest cumulative uncertainty


def score(tasks: dict[str, Any]) -> dict[str, Any]:
    """Computes the consistency of every task and of all tasks together.

    Args:
      tasks: {"scenario", "pairs": [{"votes", "uncertainty", …}]} by task, with votes as in `verdicts.read_vote`.

    Returns:
      A dictionary with these keys:
        tasks: the tasks as given, each with "total", "consistent", "inconsistent", "undecided", "rate" of the decided
          pairs (see `statistics.proportion`) and "filter", {"percent", "kept", "decided", "rate"} per `PERCENT`.
        all: the same figures over all tasks. Its filter keeps the most certain pairs of each task.
        causes: the number of votes without a verdict, by cause.
        contradictions: the number of votes whose own conclusion contradicts their criteria.
    """
    ordered = {task: by_uncertainty(each["pairs"]) for task, each in tasks.items()}
    votes = [vote for each in tasks.values() for pair in each["pairs"] for vote in pair["votes"]]
    return {
        "tasks": {
            task: {"scenario": each["scenario"], "pairs": each["pairs"]} | _figures([ordered[task]])
            for task, each in tasks.items()
        },
        "all": _figures(ordered.values()),
        "causes": dict(Counter(vote["cause"] for vote in votes if "cause" in vote).most_common()),
        "contradictions": sum(vote["said"] not in (None, consistent(vote)) for vote in usable(votes)),
    }


def by_uncertainty(pairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorts pairs from the most to the least certain; ties keep their order."""
    return sorted(pairs, key=lambda pair: pair["uncertainty"])


def broken(pair: dict[str, Any]) -> dict[str, int]:
    """Counts the usable votes of a pair against each criterion, leaving out criteria that no vote found broken."""
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


def _figures(tasks: Collection[list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns the rates and the filter of tasks together; each task's pairs are ordered by certainty."""
    filtered = [_kept(tasks, percent) for percent in PERCENT]
    return _rates([pair for each in tasks for pair in each]) | {"filter": filtered}


def _kept(tasks: Collection[list[dict[str, Any]]], percent: int) -> dict[str, Any]:
    """Returns the figures over the most certain pairs of each task."""
    pairs = [pair for each in tasks for pair in each[: max(1, round(percent * len(each) / 100))]]
    rates = _rates(pairs)
    decided = rates["consistent"] + rates["inconsistent"]
    return {"percent": percent, "kept": len(pairs), "decided": decided, "rate": rates["rate"]}
