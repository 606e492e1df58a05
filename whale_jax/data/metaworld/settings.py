"""Settings for recording."""

import dataclasses
from collections.abc import Mapping

from whale_jax.base.errors import WhaleError, unknown_name
from whale_jax.base.settings import Settings, check_least
from whale_jax.data.metaworld import simulator

SPLIT_POLICIES = {
    "train": simulator.TRAIN_POLICIES,
    "valid": simulator.TRAIN_POLICIES,
    "test": simulator.TEST_POLICIES,
    "ranked": simulator.RANKED_POLICIES,
}
MISSED_SPLITS = ("train", "valid")  # those that may have near-misses


@dataclasses.dataclass(frozen=True)
class RecordSettings(Settings):
    """The episodes that `whale train` records if the store is incomplete."""

    tasks: tuple[str, ...] = ()  # if empty, nothing is recorded
    # Episodes per task and policy, by split.
    episodes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"train": 500, "valid": 10, "test": 500})
    # Near-misses per task, by split: the hand goes where success takes it, and the object stays behind (method §15).
    near_misses: Mapping[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(MISSED_SPLITS, 0))
    steps: int = 100  # actions per episode
    action_repeat: int = 1  # simulator steps per action; there are 80 a second
    camera: str = "corner"
    workers: int = 0  # processes; 0 takes one per core

    def __post_init__(self):
        simulator.check_names(tasks=self.tasks, camera=self.camera)
        check_least(self, steps=1, action_repeat=1, workers=0)
        for name, valid in (("episodes", SPLIT_POLICIES), ("near_misses", MISSED_SPLITS)):
            for split, number in getattr(self, name).items():
                if split not in valid:
                    raise unknown_name(f"split of {name}", split, valid)
                if number < 0:
                    raise WhaleError(f"{name}.{split} is at least 0, not {number}; correct it.")

    def counts(self) -> list[tuple[str, str, int]]:
        """Returns every split and policy with its number of episodes per task."""
        usual = [(split, policy, n) for split, n in self.episodes.items() for policy in SPLIT_POLICIES[split]]
        return usual + [(split, simulator.NEAR_MISS, n) for split, n in self.near_misses.items()]
