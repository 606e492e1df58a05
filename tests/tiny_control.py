"""A study of policies in the model of tests/tiny.py, which takes seconds and learns nothing.

Command:  whale control --checkpoint=DIR --config=tests/tiny_control.py --workdir=DIR
"""

import sys
from pathlib import Path

from ml_collections import ConfigDict

sys.path.insert(0, str(Path(__file__).parent))
import tiny

from whale_jax.control.settings import ControlSettings


def get_config():
    config = tiny.get_config()
    config.name = "tiny_control"
    control = config.control = ConfigDict(ControlSettings(tasks=("door-close",)).to_dict())
    control.methods, control.seeds = ("entropy", "none", "offline"), (0, 1)
    control.probe.update({"penalties": (0.0, 5.0), "method": "entropy", "warmup": 2, "updates": 4, "every": 2})
    control.probe.update({"directions": 2, "starts": 2, "horizon": 3})
    control.updates = 4
    control.learner.update({"stack": 2, "channels": (4,), "kernels": (4,), "strides": (4,), "hidden": 8})
    control.learner.update({"feature": 8, "batch_size": 4})
    control.rollout.update({"context": 2, "horizon": 2, "starts": 2, "every": 2, "capacity": 8})
    control.trial.update({"every": 2, "episodes": 2, "steps": 4, "compared": 3})
    return config
