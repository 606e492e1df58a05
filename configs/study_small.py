"""Which policy is better, and does the model know when it is wrong? Whale-ST on the five tasks of the paper's Table 3.

Episodes are as long as the evaluated rollouts, and an ensemble is trained in addition to the model.

Command:  bash launch/pretrain.sh --config=configs/study_small.py --workdir=runs/study_small
          bash launch/evaluate.sh --checkpoint=runs/study_small --suite=video,value,uncertainty
Ablation: bash launch/pretrain.sh --config=configs/study_small.py --config.model.behaviour_conditioning=False \\
              --reuse=runs/study_small --workdir=runs/study_small_without
Time:     about two hours on two cores, and half an hour more for the ablation; a step takes 0.17 s (tokenizer),
          0.25 s (dynamics) and 0.5 s (ensemble)
Expected: docs/results.md
"""

from pathlib import Path

from whale_jax.jobs.configuration import load_config

TASKS = ("plate-slide", "button-press-wall", "faucet-close", "coffee-push", "handle-press")


def get_config():
    config = load_config(str(Path(__file__).with_name("quickstart.py")))
    config.name = "study_small"
    config.data.record.tasks = TASKS
    config.data.record.episodes = {"train": 28, "valid": 2, "test": 20}
    config.data.record.steps = 65

    stages = config.stages
    stages.tokenizer.steps = 3000
    stages.behaviour.steps, stages.behaviour.eval_every = 400, 100
    stages.dynamics.steps = stages.ensemble.steps = 4000
    stages.ensemble.members = 3
    stages.reward.steps, stages.reward.batch_size = 3000, 8

    config.evaluation.episodes = 20
    config.evaluation.batch_size = 10
    return config
