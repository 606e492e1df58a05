"""The futures that a world model imagines. Dimension keys: B trajectories, n steps, H W pixels, A actions."""

import dataclasses

import numpy as np

from whale_jax.base.errors import WhaleError
from whale_jax.imagination.trust import Horizon


@dataclasses.dataclass(frozen=True)
class Imagination:
    """Imagined futures of B trajectories over n steps.

    Attributes:
      frames: (B, n, H, W, 3) uint8.
      actions: (B, n, A) float32, the actions taken, in the robot's own units.
      rewards: (B, n) float32, of the reward head; None if the checkpoint has none.
      own_rewards: (B, n) float32, of the model itself; None if it predicts none.
      read: what every trained head says of the steps, by name, (B, n, …); `rewards` is among them.
      uncertainty: (B, n) float32, one value per step; None unless requested.
      parts: the estimates (B, n), by name, from which `uncertainty` is computed.
      notes: sentences that a reader of these figures should know.
      trust: how far these futures can be trusted; None if it is not known, for the reason `untrusted`.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray | None
    uncertainty: np.ndarray | None
    parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    own_rewards: np.ndarray | None = None
    read: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    trust: Horizon | None = None
    untrusted: str = ""

    @property
    def accumulated(self) -> np.ndarray | None:
        """(B, n) float32, the uncertainty summed up to each step; the last column is that of the whole trajectory."""
        if self.uncertainty is None:
            return None
        return np.cumsum(self.parts.get("step_uncertainty", self.uncertainty), axis=1)

    @property
    def bound(self) -> np.ndarray | None:
        """(n,) float32, the error below which futures stay until each step, see `Horizon.bound`; None if not known."""
        return None if self.trust is None else self.trust.bound(self.frames.shape[1])

    def trust_horizon(self, tolerance: float) -> np.ndarray:
        """Returns for how many steps each future is trusted to stay below an error, (B,) int, see `Horizon.steps`.

        Unless `imagine` was told the task, that is the fewest steps of all tasks that were calibrated.

        Raises:
          WhaleError: the errors of such futures are not calibrated, or the tolerance is not above 0.
        """
        if self.trust is None:
            raise WhaleError(self.untrusted)
        steps = self.trust.steps(tolerance, self.frames.shape[1], self.uncertainty)
        return np.broadcast_to(steps, len(self.frames)).copy()
