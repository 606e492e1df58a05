"""Acting in the dream: Whale-ST with an ensemble on the five tasks of the paper's Figure 4, and policies learnt in it.

Command:  bash launch/pretrain.sh --config=configs/control_small.py --workdir=runs/control_small
          whale control --checkpoint=runs/control_small --config=configs/control_small.py --workdir=runs/control
          (on two cores as two processes, --part=1/2 and --part=2/2)
Time:     40 minutes for the model, 80 for 30 policies and 25 for the probe, on two cores shared with other work
Expected: docs/control.md
"""

from pathlib import Path

from ml_collections import ConfigDict

from whale_jax.control.settings import ControlSettings
from whale_jax.jobs.configuration import load_config

TASKS = ("faucet-close", "plate-slide")
TRAINED = ("plate-slide", "button-press-wall", "faucet-close", "coffee-push", "handle-press")


def get_config():
    config = load_config(str(Path(__file__).with_name("quickstart.py")))
    config.name = "control_small"
    config.data.record.tasks = TRAINED
    config.data.record.episodes = {"train": 16, "valid": 2, "test": 4}
    config.data.record.steps = 50

    stages = config.stages
    stages.tokenizer.steps = 1600
    stages.behaviour.steps, stages.behaviour.eval_every = 200, 50
    stages.dynamics.steps = stages.ensemble.steps = 2000
    stages.ensemble.members = 3
    stages.reward.steps, stages.reward.batch_size = 2000, 8

    config.evaluation.episodes, config.evaluation.batch_size = 4, 10

    control = config.control = ConfigDict(ControlSettings(tasks=TASKS).to_dict())
    control.updates = 3000
    control.reward_scale = 1 / config.data.record.action_repeat
    control.learner.update({"channels": (32, 32), "kernels": (4, 3), "strides": (4, 2), "hidden": 256})
    control.learner.update({"batch_size": 64, "learning_rate": 3e-4, "std_updates": control.updates})
    control.learner.imitation = 0.4
    control.rollout.update({"starts": 64, "every": 200, "capacity": 8192})
    control.trial.update({"every": 600, "episodes": 20, "steps": 50, "compared": 50})
    control.probe.update({"penalties": (0.0, 50.0, 500.0, 1000.0, 2000.0), "warmup": 1200, "updates": 12})
    return config
