"""Does it know when it is wrong? Whale-ST on the five tasks of the paper's Table 3, with an ensemble beside it.

Command:  bash launch/pretrain.sh --config=configs/study_small.py --workdir=runs/study_small
          bash launch/evaluate.sh --checkpoint=runs/study_small --suite=uncertainty
Time:     a couple of hours; a step on one core takes 0.29 s (tokenizer), 0.44 s (dynamics) and 0.78 s (ensemble)
Expected: docs/results.md
"""

from whale_jax.configuration import default_config, stage, transformer

TASKS = ("plate-slide", "button-press-wall", "faucet-close", "coffee-push", "handle-press")


def get_config():
    config = default_config()
    config.name = "study_small"
    config.data.record.tasks = TASKS
    config.data.record.episodes = {"train": 56, "valid": 2, "test": 20}
    config.data.record.steps = 20
    config.data.record.action_repeat = 8

    model = config.model
    model.num_frames = 8
    model.tokenizer.patch = 8
    model.tokenizer.num_codes = 512
    model.tokenizer.encoder = transformer(4, 128, 4)
    model.tokenizer.decoder = transformer(6, 128, 4)
    model.behaviour.patch = 16
    model.behaviour.posterior = transformer(2, 64, 2)
    model.behaviour.prior = transformer(2, 64, 2)
    model.behaviour.policy = transformer(2, 64, 2)
    model.dynamics.transformer = transformer(6, 128, 4)
    model.reward.channels = (16, 32, 64, 64)
    model.reward.hidden = 128

    common = {"log_every": 50, "eval_every": 500, "save_every": 250, "eval_batches": 4}
    stages = config.stages
    stages.tokenizer = stage(
        steps=1600,
        batch_size=8,
        max_lr=1e-3,
        min_lr=1e-4,
        warmup=50,
        num_frames=4,
        init_codebook_from_data=True,
        revive_every=25,
        **common,
    )
    stages.behaviour = stage(
        steps=400, batch_size=16, max_lr=1e-3, min_lr=1e-4, warmup=50, patience=3, **(common | {"eval_every": 100})
    )
    dynamics = {"steps": 4000, "batch_size": 8, "max_lr": 1.5e-3, "min_lr": 1e-4, "warmup": 100} | common
    stages.dynamics = stage(**dynamics)
    stages.ensemble = stage(**dynamics, members=3)
    stages.reward = stage(steps=300, batch_size=8, max_lr=1e-3, min_lr=1e-4, warmup=20, num_frames=4, **common)

    config.evaluation.context = 4
    config.evaluation.horizon = 8
    config.evaluation.episodes = 20
    config.evaluation.batch_size = 10
    config.evaluation.start = -1
    return config
