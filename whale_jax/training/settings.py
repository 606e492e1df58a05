"""Settings of a stage of training, of the devices and of the log."""

import dataclasses
import math
from collections.abc import Mapping

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least, place

RULES = {"vocab": "model", "mlp": "model", "heads": "model", "embed": "", "layers": "", "members": ""}


@dataclasses.dataclass(frozen=True)
class StageSettings(Settings):
    """Settings of a stage for the loop. The defaults are the values that the paper's tables share."""

    steps: int = 100_000  # steps of the optimiser; 0 leaves the reward model out
    batch_size: int = 64  # segments per step over all devices; in an ensemble, those of each member
    # Parts into which a batch is split to save memory. They are computed one after another, and their gradients and
    # metrics are averaged. Each part has the same weight, however much of it is padding.
    accumulate: int = 1
    max_lr: float = 3e-4  # learning rate after a linear warm-up
    min_lr: float = 3e-5  # learning rate at the end of the cosine decay
    warmup: int = 5_000  # steps of the warm-up
    weight_decay: float = 0.0  # applies to matrices only
    # Weight of every term of the stage's loss. The stage's class names the terms and has the defaults.
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # Share of the average that every step keeps, such as 0.999; 0 averages nothing. With it, held-out figures, later
    # stages and imagination take the averaged weights, and checkpoints hold both.
    ema: float = 0.0
    b1: float = 0.9  # decay rates of AdamW's moments
    b2: float = 0.9
    clip: float = 1.0  # largest global norm of the gradient
    # Frames per segment; 0 takes model.num_frames. A tokenizer trained on shorter segments reconstructs the later
    # frames of a window worse, by 5 dB in the study of docs/results.md.
    num_frames: int = 0
    log_every: int = 100  # steps
    eval_every: int = 2_000  # steps
    eval_batches: int = 8  # held-out batches per evaluation
    save_every: int = 2_000  # steps
    # Evaluations without a better held-out loss before the stage stops; 0 never stops. With patience, the result is
    # the parameters of the best evaluation.
    patience: int = 0
    init_codebook_from_data: bool = False  # start the codebook from encoder outputs of the first batch
    revive_every: int = 0  # steps between revivals of dead codes from encoder outputs of the batch; 0 never revives
    revive_below: float = 0.1  # a code is dead if its use is below this fraction of an even share
    # Share of the training episodes that the stage sees. A larger share includes the episodes of a smaller one.
    data_fraction: float = 1.0
    start_from: str = place()  # directory of a checkpoint that gives this stage's initial parameters; "" draws them
    # Patterns of dotted names, such as "action.*", that are drawn even with `start_from`. Parameters that have another
    # shape in the checkpoint are always drawn.
    renew: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()  # first names of the component's parts that are not trained, such as "encoder"
    # Dynamics models of the ensemble, including that of the dynamics stage. Their disagreement is an uncertainty. 0
    # trains none.
    members: int = 0
    # Whether each member of the ensemble sees batches of its own, in another order than the dynamics stage. Otherwise
    # all see the batches of the dynamics stage, which spares the reading and encoding of all but one.
    own_batches: bool = True

    def __post_init__(self):
        check_least(self, batch_size=1, accumulate=1, log_every=1, eval_every=1, save_every=1)
        check_least(self, steps=0, max_lr=0, min_lr=0, warmup=0, weight_decay=0, num_frames=0, eval_batches=0)
        check_least(self, patience=0, revive_every=0, revive_below=0, members=0)
        if not 0 < self.clip < math.inf:
            raise WhaleError(f"clip is a number above 0, not {self.clip}; correct the config.")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise WhaleError(f"b1 and b2 are from 0 up and below 1, not {self.b1} and {self.b2}; correct the config.")
        if not 0 <= self.ema < 1:
            raise WhaleError(f"ema is from 0 up and below 1, not {self.ema}; correct the config.")
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise WhaleError(f"weights.{name} is 0 or more and finite, not {weight}; correct the config.")
        if not 0 < self.data_fraction <= 1:
            raise WhaleError(f"data_fraction lies above 0 and is at most 1, not {self.data_fraction}; correct it.")
        if self.members == 1:
            raise WhaleError("members is 1, and an ensemble has 2 or more, or 0 for none; correct the config.")
        if self.revive_every and "quantizer" in self.freeze:
            raise WhaleError("A frozen codebook (quantizer) cannot revive codes; set the stage's revive_every to 0.")


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """Settings of how arrays are spread over devices."""

    data: int = -1  # devices along the batch; -1 takes all that `model` leaves
    model: int = 1  # devices along the parameters
    fully_sharded: bool = False  # split parameters and optimiser along the batch's devices too, by the axis "embed"
    # Mesh axis of each logical axis of the parameters; "" leaves it whole.
    rules: Mapping[str, str] = dataclasses.field(default_factory=RULES.copy)


@dataclasses.dataclass(frozen=True)
class LogSettings(Settings):
    """Settings of where metrics go besides the terminal and the history."""

    tensorboard: bool = True
    wandb: bool = False
