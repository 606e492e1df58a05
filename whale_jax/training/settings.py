"""Settings of training: of one stage, of the devices, of the log."""

import dataclasses
import math
from collections.abc import Mapping

from whale_jax.base.errors import WhaleError
from whale_jax.base.settings import Settings, check_least

RULES = {"vocab": "model", "mlp": "model", "heads": "model", "embed": "", "layers": "", "members": ""}


@dataclasses.dataclass(frozen=True)
class StageSettings(Settings):
    """What the loop needs to know of a stage; the defaults are what the paper's tables share."""

    steps: int = 100_000  # of the optimiser; 0 leaves the reward model out
    batch_size: int = 64  # segments per step over all devices
    # Parts in which a batch is taken one after another, for less memory; their gradients and metrics are averaged, each
    # part counting alike however much of it is padding.
    accumulate: int = 1
    max_lr: float = 3e-4  # after a linear warm-up
    min_lr: float = 3e-5  # where the cosine after it ends
    warmup: int = 5_000  # steps
    weight_decay: float = 0.0  # of matrices
    b1: float = 0.9  # of AdamW
    b2: float = 0.9
    clip: float = 1.0  # global norm of the gradient
    # Frames per segment; 0 takes model.num_frames. A tokenizer that saw shorter segments draws the later frames of a
    # window badly, by 5 dB in the study of docs/results.md.
    num_frames: int = 0
    log_every: int = 100  # steps
    eval_every: int = 2_000  # steps
    eval_batches: int = 8  # held-out batches per evaluation
    save_every: int = 2_000  # steps
    # Evaluations without a better held-out loss before the stage stops; 0 never stops. With patience the parameters of
    # the best evaluation are the result.
    patience: int = 0
    init_codebook_from_data: bool = False  # start the codebook from encoder outputs of the first batch
    revive_every: int = 0  # steps between revivals of dead codes from encoder outputs of the batch; 0 never revives
    revive_below: float = 0.1  # a code is dead that is used less than this share of its even share
    # Share of the training episodes that the stage sees; those of a smaller share are among those of a larger one.
    data_fraction: float = 1.0
    start_from: str = ""  # directory of a checkpoint whose parameters of this stage are the initial ones; "" draws them
    # Of those, patterns of dotted names that are drawn all the same, as "action.*"; what has another shape there is
    # drawn anyhow.
    renew: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()  # parts of the component that are not trained, as "encoder": their first names
    # Dynamics models whose disagreement is an uncertainty, that of the dynamics stage among them; 0 trains none.
    members: int = 0

    def __post_init__(self):
        check_least(self, batch_size=1, accumulate=1, log_every=1, eval_every=1, save_every=1)
        check_least(self, steps=0, max_lr=0, min_lr=0, warmup=0, weight_decay=0, num_frames=0, eval_batches=0)
        check_least(self, patience=0, revive_every=0, revive_below=0, members=0)
        if not 0 < self.clip < math.inf:
            raise WhaleError(f"clip is a number above 0, not {self.clip}; correct the config.")
        if not (0 <= self.b1 < 1 and 0 <= self.b2 < 1):
            raise WhaleError(f"b1 and b2 are from 0 up and below 1, not {self.b1} and {self.b2}; correct the config.")
        if not 0 < self.data_fraction <= 1:
            raise WhaleError(f"data_fraction lies above 0 and is at most 1, not {self.data_fraction}; correct it.")
        if self.members == 1:
            raise WhaleError("members is 1, and an ensemble has 2 or more, or 0 for none; correct the config.")
        if self.revive_every and "quantizer" in self.freeze:
            raise WhaleError("A frozen codebook (quantizer) cannot revive codes; set the stage's revive_every to 0.")


@dataclasses.dataclass(frozen=True)
class MeshSettings(Settings):
    """How arrays are spread over devices."""

    data: int = -1  # devices along the batch; -1 takes all that `model` leaves
    model: int = 1  # devices along the parameters
    fully_sharded: bool = False  # parameters and optimiser are split along the batch's devices too, by the axis "embed"
    # Mesh axis of each logical axis of the parameters; "" leaves it whole.
    rules: Mapping[str, str] = dataclasses.field(default_factory=RULES.copy)


@dataclasses.dataclass(frozen=True)
class LogSettings(Settings):
    """Where metrics go beside the terminal and the history."""

    tensorboard: bool = True
    wandb: bool = False
