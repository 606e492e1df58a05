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


@dataclasses.dataclass(frozen=True)
class RecordSettings(Settings):
    """The episodes that `whale train` records if the store is incomplete."""

    tasks: tuple[str, ...] = ()  # if empty, nothing is recorded
    # Episodes per task and policy, by split.
    episodes: Mapping[str, int] = dataclasses.field(default_factory=lambda: {"train": 500, "valid": 10, "test": 500})
    steps: int = 100  # actions per episode
    action_repeat: int = 1  # simulator steps per action; there are 80 a second
    camera: str = "corner"
    workers: int = 0  # processes; 0 takes one per core

    def __post_init__(self):
        simulator.check_names(tasks=self.tasks, camera=self.camera)
        check_least(self, steps=1, action_repeat=1, workers=0)
        for split, number in self.episodes.items():
            if split not in SPLIT_POLICIES:
                raise unknown_name("split", split, SPLIT_POLICIES)
            if number < 0:
                raise WhaleError(f"episodes.{split} is at least 0, not {number}; correct it.")
