"""The tiny world model on the 27 data sets of Whale-X, with two steps per stage.

Command:  whale train --config=tests/tiny_oxe.py --workdir=DIR --config.data.root=DIR
"""

import sys
from pathlib import Path

from whale_jax.data.oxe.recipes import TABLETOP, WHALE_X

sys.path.insert(0, str(Path(__file__).parent))
import tiny


def get_config():
    config = tiny.get_config()
    config.name = "tiny_oxe"
    config.model.action_dim = 7
    config.data.mixture = WHALE_X
    config.data.subsets = {"dynamics": TABLETOP, "ensemble": TABLETOP}
    for name in config.stages:
        config.stages[name].update({"steps": 2, "eval_every": 2, "save_every": 1})
    config.evaluation.horizon, config.evaluation.start = 3, 0
    return config
