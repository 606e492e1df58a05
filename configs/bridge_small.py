"""Real frames: the quick start's networks on BridgeData V2, on two CPU cores.

Trains on any copy of `bridge_dataset`. Sizes are those for a sample of 25 episodes, cut to 10 steps. The recipe drops
the first step and leaves 9 frames: 2 are given, 7 imagined. Training sees segments of 8. The sample has no rewards, so
no reward model is trained, and 300 steps of the dynamics learn its 46 segments by heart. For a larger copy, set
--config.stages.dynamics.steps=1800 --config.stages.reward.steps=800, or more.

Command:  bash launch/pretrain.sh --config=configs/bridge_small.py --workdir=runs/bridge_small --config.data.root=DIR
Time:     seven minutes on two cores, a quarter of an hour beside other work
Memory:   1.9 GB
Expected: on the sample, moving-region PSNR at horizon 7 of 13.1 dB, 13.7 if the last frame is repeated, 16.5 through
          the tokenizer: too few episodes for more, see docs/results.md
"""

from pathlib import Path

from whale_jax.jobs.configuration import load_config


def get_config():
    config = load_config(str(Path(__file__).with_name("quickstart.py")))
    config.name = "bridge_small"
    config.data.mixture = {"bridge_orig": 1.0}
    config.data.record.tasks = ()
    config.model.action_dim = 7
    config.model.num_frames = 8
    config.model.dynamics.point_estimate = "mode"

    stages = config.stages
    stages.tokenizer.update({"batch_size": 4, "max_lr": 1e-3, "eval_every": 100, "weights": {"perceptual": 0.0}})
    stages.behaviour.batch_size = 16
    dynamics = {"steps": 300, "batch_size": 8, "max_lr": 1.5e-3, "warmup": 100, "ema": 0.0, "eval_every": 100}
    stages.dynamics.update(dynamics)
    stages.reward.steps = 0

    config.evaluation.context, config.evaluation.horizon, config.evaluation.start = 2, 7, 0
    config.evaluation.episodes, config.evaluation.suites = 20, ("video",)
    return config
