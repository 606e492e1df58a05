"""The study: which policy is better, and does the model know when it is wrong? Whale-ST on five tasks of Table 3.

Episodes are as long as the evaluated rollouts, and near-misses are among those of training. Other seeds of the model
train on the same episodes. An ensemble is trained if asked for (--config.stages.ensemble.members=3).

Command:  bash launch/pretrain.sh --config=configs/study_small.py --workdir=runs/study_0
          bash launch/evaluate.sh --checkpoint=runs/study_0 --suite=video,value,uncertainty
Seeds:    bash benchmarks/studies/seed.sh SEED, with the ablation and all that docs/study keeps
Time:     a quarter of an hour on two cores to record 1,350 episodes; an hour and a quarter to train on one core, where
          a step takes 0.4 s (tokenizer), 0.17 s (behaviour), 0.55 s (dynamics) and 0.2 s (reward)
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
    config.data.record.near_misses = {"train": 28, "valid": 2}
    config.data.record.steps = 65

    stages = config.stages
    stages.tokenizer.steps = 1500
    behaviour = {"steps": 6000, "batch_size": 8, "max_lr": 2e-3, "eval_every": 500, "eval_batches": 32, "patience": 5}
    stages.behaviour.update(behaviour | {"weights": {"kl": 0.01}})
    for stage in (stages.dynamics, stages.ensemble):
        stage.update({"steps": 2000, "batch_size": 4, "warmup": 100, "ema": 0.0})
    stages.reward.update({"steps": 5000, "batch_size": 4})

    config.evaluation.suites = ("video",)
    config.evaluation.episodes = 20
    config.evaluation.batch_size = 10
    return config
