"""DreamerV3's world model on the quick start's three tasks, on two CPU cores: 5.7 M parameters, for comparison.

Command:  bash launch/pretrain.sh --config=configs/dreamer_small.py --workdir=runs/dreamer_small
Time:     half an hour on one core for the 4,000 steps of the model, 0.43 s each; the reward head, recording and
          evaluation come on top, as in the quick start
Memory:   0.2 GB for a step of the model, by XLA's plan
"""

from pathlib import Path

from whale_jax.jobs.configuration import default_config, load_config


def get_config():
    quickstart = load_config(str(Path(__file__).with_name("quickstart.py")))
    config = default_config("rssm")
    config.name = "dreamer_small"
    config.data.update(quickstart.data)
    config.evaluation.update(quickstart.evaluation)

    model = config.model
    model.num_frames = quickstart.model.num_frames
    model.rssm.update({"deter": 256, "hidden": 256, "stoch": 16, "classes": 16, "depth": 32, "head_units": 256})
    model.reward.update(quickstart.model.reward)

    stages = config.stages
    stages.rssm.update({"steps": 4000, "batch_size": 2, "max_lr": 5e-4, "min_lr": 5e-5, "warmup": 50})
    stages.rssm.update({"b1": 0.9, "b2": 0.999, "clip": 1000.0})
    stages.rssm.update({"log_every": 50, "eval_every": 500, "save_every": 250, "eval_batches": 4})
    stages.reward.update(quickstart.stages.reward)
    return config
