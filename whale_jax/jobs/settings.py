"""Keys of a config that belong to a run as a whole. Every other group is in the package that uses it."""

import dataclasses
from collections.abc import Collection, Mapping

from whale_jax.base.errors import unknown_name
from whale_jax.base.settings import Settings, check_least, check_one_of, place, places_by_name
from whale_jax.data.oxe.recipes import RECIPES, check_readings, check_weights, default_readings
from whale_jax.data.oxe.settings import LOADERS


@dataclasses.dataclass(frozen=True)
class RunSettings(Settings):
    """The keys outside all groups."""

    name: str = "whale"
    seed: int = 0

    def __post_init__(self):
        check_least(self, seed=0)


@dataclasses.dataclass(frozen=True)
class DataSettings(Settings):
    """The source of episodes: an episode store, or a mixture of RLDS data sets."""

    root: str = place()  # episode store, or directory of a mixture's data sets; "" is `data` inside the work directory
    cache_gib: float = 2.0  # decoded episodes to keep in memory
    stall_seconds: float = 60.0  # time without a batch before the run says what it waits for
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)  # shares by name, as in `data.oxe.WHALE_X`
    subsets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # its data sets by stage
    allow_missing: bool = False  # mix only the available data sets
    loader: str = LOADERS[0]  # what reads a mixture's batches: "grain", or "tf.data", which gives the same ones
    index: str = place()  # directory of a mixture's indices; "" is next to the data
    balance: bool = False  # multiply the shares by the data sets' numbers of transitions, as OpenVLA's loader does
    robots: Mapping[str, str] = places_by_name()  # robot's YAML of data sets of your own by name
    readings: Mapping[str, str] = dataclasses.field(default_factory=default_readings)  # "checked", "openvla" or another

    def __post_init__(self):
        check_least(self, cache_gib=0, stall_seconds=0)
        check_one_of(self, LOADERS, "loader")
        check_readings({name: reading for name, reading in self.readings.items() if name not in self.robots})
        recipes = dict(RECIPES) | dict.fromkeys(self.robots)
        if self.mixture:
            check_weights(self.mixture, recipes)
        for names in self.subsets.values():
            for name in names:
                if name not in recipes:
                    raise unknown_name("Open X-Embodiment data set", name, recipes)


def check_subsets(settings: DataSettings, stages: Collection[str]) -> None:
    """Raises WhaleError if `data.subsets` names a stage that does not exist."""
    for stage in settings.subsets:
        if stage not in stages:
            raise unknown_name("stage in data.subsets", stage, stages)
