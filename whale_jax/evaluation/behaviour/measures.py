"""Measures of what a behaviour embedding says of the policy, and what it is worth to the dynamics (docs/method.md §4).

All are plain functions of NumPy arrays. Several clips come from one episode, so episodes are what is drawn for
intervals and divided for probes. Dimension keys: n clips, D features, E episodes, R bootstrap draws.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whale_jax.evaluation import statistics

RIDGE = 1.0  # weight of the probe's squared coefficients
FITTED = 2  # the "half" of clips that probes are fitted on and do not read, those of training
EXPERT, RANDOM, NOISY = "expert", "random", "expert-noise-"  # the policies that the paper's claims are about


def other_clips(tasks: Sequence[str], policies: Sequence[str]) -> np.ndarray:
    """Returns for every clip the index of another one (n,): of the same task, and of its next policy if it has several.

    Clips of a task and policy are in the order of their episodes.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for index, (task, policy) in enumerate(zip(tasks, policies, strict=True)):
        groups.setdefault(task, {}).setdefault(policy, []).append(index)
    found = np.zeros(len(tasks), np.int64)
    for of_task in groups.values():
        names = list(of_task)
        for place, name in enumerate(names):
            theirs = of_task[names[(place + 1) % len(names)]]
            # With a single policy, half a turn leads from one half of its episodes to the other.
            turn = 0 if len(names) > 1 else len(theirs) // 2
            for number, index in enumerate(of_task[name]):
                found[index] = theirs[(number + turn) % len(theirs)]
    return found


def halves(tasks: Sequence[str], policies: Sequence[str], episodes: np.ndarray) -> np.ndarray:
    """Divides clips into two halves by episode: (n,) of 0 and 1, with each task and policy in both if it can be."""
    places = {name: i for names in (tasks, policies) for i, name in enumerate(dict.fromkeys(names))}
    seen: dict[tuple[str, str], list[int]] = {}
    found = []
    for task, policy, episode in zip(tasks, policies, episodes, strict=True):
        known = seen.setdefault((task, policy), [])
        if episode not in known:
            known.append(episode)
        # Where each pair has one episode, a policy's tasks alternate.
        found.append((places[task] + places[policy] + known.index(episode)) % 2)
    return np.array(found, np.int64)


def predict(features: np.ndarray, labels: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Returns the labels (n,) that linear probes read off features (n, D), each fitted on all but the clip's own half.

    A probe is a ridge regression on one-hot labels, in closed form. It reads nothing of `FITTED`.
    """
    names, numbers = np.unique(labels, return_inverse=True)
    targets, found = np.eye(len(names))[numbers], np.zeros_like(labels)
    for part in (0, 1):
        fitted, read = half != part, half == part
        centre, share = features[fitted].mean(0), targets[fitted].mean(0)
        x, y = features[fitted] - centre, targets[fitted] - share
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)
        found[read] = names[((features[read] - centre) @ weights + share).argmax(1)]
    return found


@dataclasses.dataclass(frozen=True)
class Probed:
    """Clips that probes read: the embedding of each, and what the same network says before it is trained.

    Attributes:
      features: (n, D); untrained: (n, D), the control. Even random features of a frame tell a policy or a task.
      tasks, policies: (n,) of str.
      episodes: (n,) int.
      half: (n,) of 0 and 1, see `halves`, and `FITTED` for clips of training, which no figure counts.
      draws, seed: of the bootstrap.
    """

    features: np.ndarray
    untrained: np.ndarray
    tasks: np.ndarray
    policies: np.ndarray
    episodes: np.ndarray
    half: np.ndarray
    draws: int
    seed: int

    def only(self, rows: np.ndarray) -> "Probed":
        """Returns the clips of `rows` (n,) bool."""
        names = ("features", "untrained", "tasks", "policies", "episodes", "half")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def right(self, labels: np.ndarray) -> np.ndarray | None:
        """Returns what probes read right, (2, n) bool: off the features, and off those of the untrained network.

        None if there are fewer than two labels, or not two halves of episodes.
        """
        if len(np.unique(labels)) < 2 or len(np.unique(self.half)) < 2:
            return None
        return np.array([predict(each, labels, self.half) == labels for each in (self.features, self.untrained)])

    def score(self, right: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """Returns "accuracy", that of the "untrained" network and the "gain" over it, with intervals, and controls.

        The controls are "chance", one over the number of "labels", and "majority", the share of the most frequent one.
        """
        read = self.half != FITTED
        counts = np.unique(labels[read], return_counts=True)[1]
        own, untrained = right.astype(float)[:, read]
        return {
            "accuracy": self.interval(own),
            "untrained": self.interval(untrained),
            "gain": self.interval(own - untrained),
            "chance": 1.0 / len(counts),
            "majority": float(counts.max() / read.sum()),
            "labels": len(counts),
        }

    def interval(self, values: np.ndarray) -> list[float | None]:
        return mean_interval(values, self.episodes[self.half != FITTED], self.draws, self.seed)


def probe(probed: Probed, labels: np.ndarray) -> dict[str, Any] | None:
    """Measures how well a linear probe reads labels (n,) of episodes that it has not seen; see `Probed.score`.

    None if they cannot be read at all, see `Probed.right`.
    """
    right = probed.right(labels)
    return None if right is None else probed.score(right, labels)


def above_chance(found: Mapping[str, Any]) -> bool:
    """Returns whether a probe's interval lies above chance and the majority."""
    low = found["accuracy"][1]
    return low is not None and low > max(found["chance"], found["majority"])


def tells(found: Mapping[str, Any]) -> bool:
    """Returns whether a probe reads more than chance, the majority and the untrained network give, by its intervals."""
    gain = found["gain"][1]
    return above_chance(found) and gain is not None and gain > 0


def mean_interval(values: np.ndarray, episodes: np.ndarray, draws: int, seed: int) -> list[float | None]:
    """Returns [mean, low, high] of values (n,), a 95 % percentile interval by bootstrap over episodes (n,)."""
    numbers = np.unique(episodes, return_inverse=True)[1]
    sums, counts = np.bincount(numbers, values), np.bincount(numbers)
    picks = statistics.resamples(len(sums), draws, seed)
    totals, sizes = (np.concatenate([[x.sum()], x[picks].sum(1)]) for x in (sums, counts))
    return statistics.interval(totals / sizes)


def cross_entropies(values: Mapping[str, np.ndarray], episodes: np.ndarray, draws: int, seed: int) -> dict[str, Any]:
    """Compares the cross-entropies (n,) of clips under several conditions, of which the first is their own.

    Returns:
      "mean" with its interval by condition; "worse" by condition, how much higher it is than the first, paired by clip;
      and "clips".
    """
    own = next(iter(values.values()))
    others = list(values)[1:]
    return {
        "mean": {name: mean_interval(each, episodes, draws, seed) for name, each in values.items()},
        "worse": {name: mean_interval(values[name] - own, episodes, draws, seed) for name in others},
        "clips": len(own),
    }


def claims(probed: Probed, probabilities: np.ndarray) -> dict[str, Any]:
    """Tests what the paper reads off its Figure 15, in the embedding itself instead of a picture of it.

    Args:
      probed: the clips; probabilities: (n, D), whose means are compared.

    Returns:
      The probes "policies of a task" (fitted within each task), "experts of the tasks" and "random of the tasks", and
      "noisy", see `between`. What the episodes do not allow is left out.
    """
    found: dict[str, Any] = {}
    tasks, policies = probed.tasks, probed.policies
    within = {task: probed.only(tasks == task).right(policies[tasks == task]) for task in np.unique(tasks)}
    if all(right is not None for right in within.values()):
        right = np.zeros((2, len(tasks)), bool)
        for task, each in within.items():
            right[:, tasks == task] = each
        found["policies of a task"] = probed.score(right, policies)
    for name, policy in (("experts of the tasks", EXPERT), ("random of the tasks", RANDOM)):
        own = policies == policy
        if own.any() and (read := probe(probed.only(own), tasks[own])):
            found[name] = read
    read = probed.half != FITTED
    return found | {"noisy": between(probabilities[read], tasks[read], policies[read])}


def between(probabilities: np.ndarray, tasks: np.ndarray, policies: np.ndarray) -> dict[str, dict[str, float]]:
    """Compares the mean probabilities (n, D) of every noisy expert with those of the expert and the random policy.

    Returns:
      By policy, "position", where its mean lies between the expert's (0) and the random policy's (1), and "off", how
      far from their line, as a share of its length. Both are means over tasks.
    """
    found: dict[str, dict[str, float]] = {}
    for policy in (name for name in np.unique(policies) if name.startswith(NOISY)):
        places = []
        for task in np.unique(tasks):
            of = {name: probabilities[(tasks == task) & (policies == name)] for name in (EXPERT, RANDOM, policy)}
            if not all(map(len, of.values())):
                continue
            expert, other, own = (each.mean(0) for each in of.values())
            line = other - expert
            length = max(float(line @ line), 1e-12)
            position = float((own - expert) @ line) / length
            off = np.linalg.norm(own - expert - position * line) / np.sqrt(length)
            places.append((position, float(off)))
        if places:
            position, off = np.mean(places, axis=0)
            found[str(policy)] = {"position": float(position), "off": float(off)}
    return found
