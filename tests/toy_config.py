"""A run of the toy model.

Command:  whale train --plugin=toy --config=tests/toy_config.py --workdir=DIR --config.data.root=DIR
"""

from whale_jax.jobs.configuration import default_config

COMMON = {"steps": 10, "batch_size": 8, "max_lr": 3e-2, "min_lr": 3e-3, "warmup": 2}
COMMON |= {"log_every": 1, "eval_every": 4, "save_every": 2, "eval_batches": 1}


def get_config():
    config = default_config("toy")
    config.name = "toy"
    config.model.num_frames, config.model.image_size = 4, 16
    config.model.reward.channels, config.model.reward.hidden, config.model.reward.bins = (8, 8), 16, 21
    for stage in config.stages.values():
        stage.update(COMMON)
    config.stages.toy.update({"steps": 1000, "log_every": 100, "save_every": 50, "eval_every": 500})
    config.log.tensorboard = False
    config.evaluation.horizon, config.evaluation.episodes, config.evaluation.batch_size = 4, 2, 2
    config.evaluation.start = -1
    return config
