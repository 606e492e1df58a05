"""The quick start: a small Whale-ST on three Meta-World tasks, on two CPU cores, from no data to a report.

Command:  bash launch/pretrain.sh
"""

from whale_jax.jobs.configuration import default_config, stage, transformer


def get_config():
    config = default_config()
    config.name = "quickstart"
    config.data.record.tasks = ("door-close", "drawer-close", "plate-slide")
    config.data.record.episodes = {"train": 48, "valid": 2, "test": 4}
    config.data.record.steps = 20
    config.data.record.action_repeat = 8

    model = config.model
    model.num_frames = 16
    model.tokenizer.patch = 8
    model.tokenizer.num_codes = 512
    model.tokenizer.encoder = transformer(4, 128, 4)
    model.tokenizer.decoder = transformer(6, 128, 4)
    model.behaviour.patch = 16
    model.behaviour.posterior = transformer(2, 64, 2)
    model.behaviour.prior = transformer(2, 64, 2)
    model.behaviour.policy = transformer(2, 64, 2)
    model.dynamics.transformer = transformer(6, 128, 4)
    model.dynamics.point_estimate = "mean"
    model.reward.channels = (16, 32, 64, 64)
    model.reward.hidden = 128

    common = {"log_every": 50, "eval_every": 500, "save_every": 250, "eval_batches": 4}
    stages = config.stages
    stages.tokenizer = stage(
        steps=800,
        batch_size=2,
        max_lr=4e-3,
        min_lr=1e-4,
        warmup=50,
        weights={"reconstruction": 1.0, "codebook": 1.0, "commitment": 0.25, "perceptual": 0.004},
        init_codebook_from_data=True,
        revive_every=25,
        **common,
    )
    stages.behaviour = stage(
        steps=200, batch_size=8, max_lr=1e-3, min_lr=1e-4, warmup=50, patience=3, **(common | {"eval_every": 50})
    )
    dynamics = {"steps": 2800, "batch_size": 2, "max_lr": 4e-3, "min_lr": 1e-4, "warmup": 200, "ema": 0.99} | common
    stages.dynamics = stage(**dynamics)
    stages.ensemble = stage(**dynamics)
    stages.reward = stage(steps=800, batch_size=2, max_lr=1e-3, min_lr=1e-4, warmup=20, **common)

    config.evaluation.suites = ("video", "uncertainty", "trust")
    config.evaluation.uncertainty.estimators = ("retracing", "entropy")
    config.evaluation.context = 2
    config.evaluation.horizon = 16
    config.evaluation.episodes = 4
    config.evaluation.batch_size = 9
    config.evaluation.start = -1
    return config
