"""Acting in the dream: the study's model with an ensemble, and policies for two tasks of the paper's Figure 4 in it.

Command:  bash launch/pretrain.sh --config=configs/control_small.py --workdir=runs/control_small
          whale control --checkpoint=runs/control_small --config=configs/control_small.py --workdir=runs/control
          (on two cores as two processes, --part=1/2 and --part=2/2)
Time:     for the model that of study_small.py and of an ensemble of three on top; two and a half hours for 30 policies
          and the probe, as two processes on two cores
Expected: no penalty raises success; the probe's exploit comes without a penalty, later with a share of 1 or 2, and one
          of 4 holds it (docs/control.md)
"""

from pathlib import Path

from ml_collections import ConfigDict

from whale_jax.control.settings import ControlSettings
from whale_jax.jobs.configuration import load_config

TASKS = ("faucet-close", "plate-slide")


def get_config():
    config = load_config(str(Path(__file__).with_name("study_small.py")))
    config.name = "control_small"
    config.stages.ensemble.members = 3

    control = config.control = ConfigDict(ControlSettings(tasks=TASKS).to_dict())
    control.updates = 3000
    control.penalty_unit = "share"
    control.penalties = {"retracing": 0.5, "entropy": 0.5, "ensemble": 0.5}
    control.reward_scale = 1 / config.data.record.action_repeat
    control.learner.update({"channels": (32, 32), "kernels": (4, 3), "strides": (4, 2), "hidden": 256})
    control.learner.update({"batch_size": 64, "learning_rate": 3e-4, "std_updates": control.updates})
    control.learner.imitation = 0.4
    control.rollout.update({"starts": 64, "every": 200, "capacity": 8192})
    control.trial.update({"every": 600, "episodes": 20, "steps": 50, "compared": 50})
    control.probe.update({"penalties": (0.0, 0.5, 1.0, 2.0, 4.0), "warmup": 1200, "updates": 12})
    return config
