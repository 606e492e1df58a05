"""Does it know when it is wrong? Whale-ST on the five tasks of the paper's Table 3, with an ensemble beside it.

Command:  bash launch/pretrain.sh --config=configs/study_small.py --workdir=runs/study_small
          bash launch/evaluate.sh --checkpoint=runs/study_small --suite=uncertainty
Time:     a couple of hours; a step on one core takes 0.29 s (tokenizer), 0.44 s (dynamics) and 0.78 s (ensemble)
Expected: docs/results.md
"""

from pathlib import Path

from whale_jax.configuration import load_config

TASKS = ("plate-slide", "button-press-wall", "faucet-close", "coffee-push", "handle-press")


def get_config():
    config = load_config(str(Path(__file__).with_name("quickstart.py")))
    config.name = "study_small"
    config.data.record.tasks = TASKS
    config.data.record.episodes = {"train": 56, "valid": 2, "test": 20}

    stages = config.stages
    stages.tokenizer.steps = 1600
    stages.behaviour.steps, stages.behaviour.eval_every = 400, 100
    stages.dynamics.steps = stages.ensemble.steps = 4000
    stages.ensemble.members = 3
    stages.reward.steps = 2000

    config.evaluation.context = 4
    config.evaluation.horizon = 8
    config.evaluation.episodes = 20
    config.evaluation.batch_size = 10
    return config
