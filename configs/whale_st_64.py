"""Whale-ST at 64x64 on Meta-World, as published (Tables 5 to 8): 51 M parameters (tokenizer and dynamics).

Command:  bash launch/pretrain.sh --config=configs/whale_st_64.py --workdir=runs/whale_st_64
Data:     20 tasks, 60,000 training and 30,000 test episodes of 100 steps (about 45 GB), recorded on the first run.
Time:     the paper gives about 3 days on one RTX 4090 (tokenizer 2 days, behaviour 8 hours, dynamics 1 day).
Expected: FVD 38.5, PSNR 28.8, SSIM 93.5, LPIPS 3.7; value gap 10.3, return correlation 0.77, regret@5 7.3
          (the paper's Tables 1 and 2).
"""

from whale_jax.data.metaworld import TASKS
from whale_jax.jobs.configuration import default_config


def get_config():
    config = default_config()
    config.name = "whale_st_64"
    config.data.record.tasks = TASKS
    return config
