"""The endless stream of a mixture's batches: its position, what was drawn, and the memory that it takes."""

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any

import grain
import numpy as np
import psutil

from whale_jax.base.errors import WhaleError
from whale_jax.base.text import say
from whale_jax.data.contract.batch import Batch
from whale_jax.data.oxe.index import Index
from whale_jax.data.oxe.recipes import PUBLIC, RECIPES, Recipe
from whale_jax.data.store.batches import BatchIterator

_MEMORY_EVERY = 100


@dataclasses.dataclass(frozen=True)
class Plan:
    """All batches of a stream by number, and what they depend on.

    Attributes:
      batches: batch k, for every k.
      identity: what the stream depends on, for JSON.
      mixture: the data sets, a `whale_jax.data.oxe.mixture.Mixture`.
      reader: reads the segments, and counts those that are bad.
      hosts: number of shards.
    """

    batches: grain.MapDataset
    identity: dict[str, Any]
    mixture: Any
    reader: Any
    hosts: int


def described(index: Index) -> str:
    """Returns what a data set's segments depend on, wherever its index lies."""
    dataset, recipe = index.dataset, index.recipe
    facts = f"{dataset.name} {dataset.version}, recipe {recipe.version}"
    return f"{facts}, {len(index.episodes)} episodes, {index.episodes['frames'].sum()} frames"


def _version_in(text: str) -> str:
    """Returns the recipe's version in a text of `described`."""
    return text.partition(", recipe ")[2].partition(",")[0]


def _reading_of(recipe: Recipe, version: str) -> str | None:
    """Returns the reading of a recipe that has a version, or None."""
    known = {RECIPES[recipe.name].version: PUBLIC} if recipe.name in RECIPES else {}
    known |= {changes.get("version", recipe.version): name for name, changes in recipe.others.items()}
    return known.get(version)


class MixtureIterator(BatchIterator):
    """Batches of a mixture. It counts the segments drawn from each data set and watches the process's memory."""

    def __init__(self, dataset: Iterable[Batch], plan: Plan):
        super().__init__(dataset, plan.identity)
        self._hosts, self._mixture, self._reader = plan.hosts, plan.mixture, plan.reader
        self._budget = plan.reader._settings.ram_budget_mb
        self._drawn = np.zeros(len(plan.mixture.indices), np.int64)
        self._count, self._resident = 0, 0

    def __next__(self) -> Batch:
        batch = super().__next__()
        number = np.searchsorted(self._mixture.offsets, batch.episode, side="right") - 1
        self._drawn += np.bincount(number, minlength=len(self._drawn))
        self._count += 1
        if self._count % _MEMORY_EVERY == 0:
            self._check_memory()
        return batch

    def _check_memory(self) -> None:
        resident = psutil.Process().memory_info().rss >> 20
        if not self._resident:
            self._resident = resident
        elif resident - self._resident > self._budget:
            raise WhaleError(
                f"This process has grown from {self._resident} to {resident} MB since its first {_MEMORY_EVERY} "
                f"batches, by more than {self._budget} MB (data.read.ram_budget_mb, and what checkpoints "
                "take). It stops before the system does; the last checkpoint is whole. Lower data.read.threads or the "
                "batch size, or raise the budget, and resume."
            )

    def allow_growth(self, nbytes: int) -> None:
        self._budget += nbytes >> 20

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"drawn": self._drawn.tolist(), "hosts": self._hosts}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from `state`, also on another number of hosts.

        The shards of another number of hosts hold other episodes, so the order differs from here on.
        """
        super().set_state({**state, "stream": self._stream_of(state["stream"])})
        if state["hosts"] != self._hosts:
            print(
                f"Resuming on {self._hosts} hosts what {state['hosts']} began: from here on segments come in another "
                "order, by the same shares.",
                file=sys.stderr,
            )
        self._drawn = np.array(state["drawn"], np.int64)

    def _stream_of(self, saved: dict[str, Any]) -> dict[str, Any]:
        """Returns the identity in a state. One from before recipes had versions goes with version "1" of all.

        Raises:
          WhaleError: a data set is read otherwise by now. The message has the keys that restore its former reading.
        """
        if "datasets" in saved:
            was = [_version_in(text) for text in saved["datasets"]]
        else:
            was = ["1"] * len(self._mixture.indices)
        if len(was) == len(self._mixture.indices):
            self._check_readings(was)
        if "datasets" in saved:
            return saved
        say("note: this run began before the reward of an episode's last step counted; from here on it does.")
        return saved | {"datasets": self._identity["datasets"]}

    def _check_readings(self, was: list[str]) -> None:
        recipes = [index.recipe for index in self._mixture.indices]
        changed = [(r, version) for r, version in zip(recipes, was, strict=True) if r.version != version]
        if not changed:
            return
        restoring = [(recipe.name, _reading_of(recipe, version)) for recipe, version in changed]
        names = ", ".join(name for name, _ in restoring)
        if lost := [name for name, reading in restoring if reading is None]:
            own = all(recipe.name not in RECIPES for recipe, _ in changed)
            began = "the robot's file" if own else "the version of Whale"
            raise WhaleError(
                f"The data iterator cannot resume: the run began when {names} was read otherwise, and "
                f"{', '.join(lost)} is no longer read so. Start a new run, or resume with {began} that it began with."
            )
        keys = " ".join(f"--config.data.readings.{name}={reading}" for name, reading in restoring)
        raise WhaleError(
            f"The data iterator cannot resume: the run began when {names} was read otherwise. To go on as it began, "
            f"add {keys}"
        )

    @property
    def shares(self) -> dict[str, float]:
        """Each data set's share of the segments drawn so far."""
        return dict(zip(self._mixture.names, (self._drawn / max(self._drawn.sum(), 1)).tolist(), strict=True))

    def report(self) -> str:
        """Returns one line with the shares drawn, the shares requested, and what was bad."""
        asked = self._mixture.weights
        parts = [f"{n} {100 * s:.1f} ({100 * w:.1f})" for (n, s), w in zip(self.shares.items(), asked, strict=True)]
        bad = [f"{count} segments of {name}: {cause}" for (name, cause), count in sorted(self._reader.bad.items())]
        return "data, % drawn (asked): " + ", ".join(parts) + ("; skipped " + "; ".join(bad) if bad else "")
