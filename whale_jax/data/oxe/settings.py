"""Settings of reading a mixture; importable without what reads it."""

import dataclasses

from whale_jax.base.settings import Settings, check_least


@dataclasses.dataclass(frozen=True)
class ReadSettings(Settings):
    """How segments become batches."""

    image_size: int  # side of a frame in pixels; pictures are squeezed to it
    threads: int = 2  # batches that are made at the same time; 0 makes them in the caller's
    prefetch: int = 2  # batches that may wait
    ram_budget_mb: int = 4096  # of batches in the making and the tables, and of what the process may grow by later on
    max_bad_share: float = 0.05  # of a data set's episodes, or of the segments drawn from it, before it is an error
    workers: int = 0  # processes that index; 0 takes one per core

    def __post_init__(self):
        check_least(self, image_size=1, threads=0, prefetch=0, ram_budget_mb=1, max_bad_share=0, workers=0)
