"""Settings for reading a mixture. Importable without the packages that read it."""

import dataclasses

from whale_jax.base.settings import Settings, check_least

LOADERS = ("grain", "tf.data")  # what may read the batches of a mixture; all give the same


@dataclasses.dataclass(frozen=True)
class ReadSettings(Settings):
    """Settings that turn segments into batches."""

    image_size: int  # side of a frame in pixels; pictures are squeezed to it
    threads: int = 2  # batches in preparation at the same time; 0 makes them in the caller's thread
    prefetch: int = 2  # batches that may wait for use
    ram_budget_mb: int = 4096  # for batches in preparation and tables, and for later growth of the process
    max_bad_share: float = 0.05  # bad episodes of a data set, or segments drawn from it, beyond which it is an error
    workers: int = 0  # indexing processes; 0 uses one per core

    def __post_init__(self):
        check_least(self, image_size=1, threads=0, prefetch=0, ram_budget_mb=1, max_bad_share=0, workers=0)
