"""Settings of one training stage."""

import dataclasses

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings


@dataclasses.dataclass(frozen=True)
class StageSettings(Settings):
    """What the loop needs to know of a stage; the defaults are what the paper's tables share.

    Attributes:
      steps, batch_size: optimiser steps, and segments per step over all devices; no step leaves the reward model out.
      accumulate: parts in which a batch is taken one after another, for less memory; their gradients and metrics are
        averaged, each part counting alike however much of it is padding.
      max_lr, min_lr, warmup: linear warm-up in steps, then cosine down to min_lr.
      weight_decay: of matrices; b1, b2: of AdamW; clip: global norm of the gradient.
      num_frames: frames per segment; 0 takes the model's.
      log_every, eval_every, eval_batches, save_every: cadence in steps, and held-out batches per evaluation.
      patience: evaluations without a better held-out loss before the stage stops; 0 never stops. With
        patience the parameters of the best evaluation are the result.
      init_codebook_from_data: start the codebook from encoder outputs of the first batch.
      revive_every, revive_below: every so many steps, codes used less than `revive_below` times their even
        share restart from encoder outputs of the batch; 0 never.
      data_fraction: share of the training episodes that the stage sees, 0 < data_fraction <= 1; those of a smaller
        share are among those of a larger one.
      start_from: directory of a checkpoint whose parameters of this stage are the initial ones; empty draws them.
      renew: of those, patterns of dotted names that are drawn all the same, as "action.*"; what has another shape there
        is drawn anyhow.
      freeze: parts of the component that are not trained, as "encoder": their first names.
      members: of the ensemble, the model of the dynamics stage among them; 0 trains none.
    """

    steps: int = 100_000
    batch_size: int = 64
    accumulate: int = 1
    max_lr: float = 3e-4
    min_lr: float = 3e-5
    warmup: int = 5_000
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.9
    clip: float = 1.0
    num_frames: int = 0
    log_every: int = 100
    eval_every: int = 2_000
    eval_batches: int = 8
    save_every: int = 2_000
    patience: int = 0
    init_codebook_from_data: bool = False
    revive_every: int = 0
    revive_below: float = 0.1
    data_fraction: float = 1.0
    start_from: str = ""
    renew: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    members: int = 0

    def __post_init__(self):
        if self.steps < 0:
            raise WhaleError(f"A stage's steps are not negative, as {self.steps} is; correct the config.")
        for name in ("batch_size", "accumulate", "log_every", "eval_every", "save_every"):
            if getattr(self, name) < 1:
                raise WhaleError(f"A stage's {name} is at least 1, not {getattr(self, name)}; correct the config.")
        if not 0 < self.data_fraction <= 1:
            raise WhaleError(
                f"A stage's data_fraction lies above 0 and is at most 1, not {self.data_fraction}; correct the config."
            )
        if self.members < 0 or self.members == 1:
            raise WhaleError(
                f"An ensemble has 2 members or more, or 0 for none, not {self.members}; correct the config."
            )
        if self.revive_every and "quantizer" in self.freeze:
            raise WhaleError("A frozen codebook (quantizer) cannot revive codes; set the stage's revive_every to 0.")
        if self.warmup < 0 or self.max_lr < 0 or self.clip <= 0:
            raise WhaleError("A stage's warmup and max_lr are at least 0 and its clip is above 0; correct the config.")
