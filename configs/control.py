"""Policies learnt in Whale-ST at 64 pixels, by the paper's protocol (Figure 4): five tasks, five methods, three seeds.

Command:  bash launch/pretrain.sh --config=configs/whale_st_64.py --workdir=runs/whale_st_64 \\
              --config.stages.ensemble.members=3
          whale control --checkpoint=runs/whale_st_64 --config=configs/control.py --workdir=runs/control
          (on eight devices: CUDA_VISIBLE_DEVICES=0 with --part=1/8, to CUDA_VISIBLE_DEVICES=7 with --part=8/8)
Time:     not measured; 75 runs of 100,000 updates each, and five runs of the probe
Expected: the paper's Figure 4: the retracing penalty is highest and steadiest on three of five tasks
"""

from ml_collections import ConfigDict

from whale_jax.control.settings import ControlSettings
from whale_jax.jobs.configuration import default_config

TASKS = ("plate-slide", "button-press-wall", "faucet-close", "coffee-push", "handle-press")


def get_config():
    config = default_config()
    config.name = "control"
    config.control = ConfigDict(ControlSettings(tasks=TASKS).to_dict())
    config.control.probe.penalties = (0.0, 50.0, 500.0, 1000.0, 2000.0)
    return config
