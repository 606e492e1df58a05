"""Settings of DreamerV3's world model."""

import dataclasses
import math
from typing import ClassVar

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import check_least, inputs, objective
from whale_jax.models.base import ModelKeys, ModelSettings

SMALLEST = 4  # side of the map at which the encoder ends and the decoder begins


@dataclasses.dataclass(frozen=True)
class RssmKeys(ModelKeys):
    """Keys of `model` in a config. Segments are as short as DreamerV3's in the paper."""

    num_frames: int = 8  # T, frames of a training segment


@dataclasses.dataclass(frozen=True)
class RssmSettings(ModelSettings):
    """Settings of all networks. The defaults are the 45 M parameters of the paper's Table 10."""

    num_frames: int  # T, frames of a training segment
    image_size: int  # side of a frame in pixels
    action_dim: int = inputs()  # A, dimensions of an action
    deter: int = 1024  # D, size of the deterministic state
    hidden: int = 1024  # U, width of the layers around the recurrent cell
    stoch: int = 32  # G, number of one-hot vectors that make up the stochastic state
    classes: int = 32  # entries of each of these vectors
    depth: int = 64  # channels of the encoder's first convolution; each further one has twice as many
    max_depth: int = 512  # most channels of a convolution
    unimix: float = 0.01  # share of the uniform distribution in every categorical
    free_nats: float = objective(1.0)  # a KL divergence below this many nats has no gradient
    head_layers: int = 2  # hidden layers of the heads for reward and continuation
    head_units: int = 512  # their width
    bins: int = 255  # number of bins of the distribution over rewards, evenly spaced in their symlog
    limit: float = 20.0  # the bins span symlog rewards from -limit to limit

    window: ClassVar[int | None] = None
    block: ClassVar[int] = 1

    def __post_init__(self):
        check_least(self, num_frames=1, action_dim=1, deter=1, hidden=1, stoch=1, classes=2, depth=1, max_depth=1)
        check_least(self, unimix=0, free_nats=0, head_layers=0, head_units=1, bins=2)
        if self.unimix >= 1:
            raise WhaleError(f"unimix is a share below 1, not {self.unimix}; correct the config.")
        if not 0 < self.limit < math.inf:
            raise WhaleError(f"limit is a number above 0, not {self.limit}; correct the config.")
        side = self.image_size
        if side <= SMALLEST or side % SMALLEST or (side // SMALLEST).bit_count() != 1:
            raise WhaleError(
                f"An RSSM halves frames until {SMALLEST} pixels a side are left, and {side} pixels do not halve to "
                "that; choose a model.image_size of 8, 16, 32, 64, 128 or 256."
            )

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of frames in pixels."""
        return (self.image_size, self.image_size)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the encoder's convolutions, each of which halves the frame."""
        count = (self.image_size // SMALLEST).bit_length() - 1
        return tuple(min(self.depth * 2**i, self.max_depth) for i in range(count))

    @property
    def latent_dim(self) -> int:
        """G C, size of the stochastic state when flat."""
        return self.stoch * self.classes
