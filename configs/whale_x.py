"""Whale-X at 256x256 (Tables 5 to 8): variants small, medium, base (default) and large, dynamics of 39 to 456 M.

Tokenizer, behaviour and reward model see all 27 data sets of the mixture (docs/oxe.md), the dynamics its tabletop sets.

Command:  bash launch/pretrain.sh --config=configs/whale_x.py --workdir=DIR --config.data.root=DIR
          (configs/whale_x.py:large for another variant)
Time:     the paper gives about 10 days on eight RTX 4090 for base (tokenizer 6, behaviour under 1, dynamics 3).
Expected: after fine-tuning, PSNR 22.3, SSIM 80.5, LPIPS 29.6 (the paper's Table 4, base).
"""

from whale_jax.base.errors import unknown_name
from whale_jax.data.oxe import TABLETOP, WHALE_X
from whale_jax.jobs.configuration import default_config, stage, transformer

DYNAMICS = {
    "small": (18, 512, 8),
    "medium": (16, 768, 16),
    "base": (24, 1024, 16),
    "large": (24, 1536, 12),
}


def get_config(variant: str = "base"):
    if variant not in DYNAMICS:
        raise unknown_name("Whale-X variant", variant, DYNAMICS)
    config = default_config()
    config.name = f"whale_x_{variant}"
    config.data.mixture = WHALE_X
    config.data.subsets = {"dynamics": TABLETOP, "ensemble": TABLETOP}
    config.data.read.threads = 16
    model = config.model
    model.image_size = 256
    model.action_dim = 7
    model.tokenizer.patch = 16
    model.tokenizer.num_codes = 2048
    model.tokenizer.encoder = transformer(12, 512, 8)
    model.tokenizer.decoder = transformer(20, 1024, 16)
    model.behaviour.patch = 32
    model.behaviour.posterior = transformer(12, 768, 12)
    model.behaviour.prior = transformer(8, 512, 8)
    model.behaviour.policy = transformer(12, 768, 12)
    model.dynamics.transformer = transformer(*DYNAMICS[variant])
    model.reward.channels = (32, 64, 128, 256, 256, 256)
    model.execution.scan = True
    model.execution.remat = "dots"
    stages = config.stages
    stages.tokenizer = stage(steps=300_000, min_lr=3e-5)
    stages.behaviour = stage(steps=50_000, weight_decay=1e-4, patience=5)
    return config
