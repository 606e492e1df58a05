"""DreamerV3's world model at 64x64 on Meta-World, as the paper compares it with Whale-ST (its Table 10): 45 M.

Command:  bash launch/pretrain.sh --config=configs/dreamer_v3.py --workdir=runs/dreamer_v3
          (62 M parameters at 256x256: --config.model.image_size=256
              --config.model.reward.channels=32,64,128,256,256,256)
Data:     the same as for configs/whale_st_64.py.
Time:     not measured. The paper does not give the number of steps; 100,000 is a choice.
Memory:   2.3 GB for a step of the model and 28 GB at 256x256, by XLA's plan for a CPU, not measured on a GPU;
          stages.rssm.accumulate splits the batch
Expected: FVD 142.7, PSNR 27.6, SSIM 92.1, LPIPS 4.3; value gap 10.0, return correlation 0.70, regret@5 16.5
          (the paper's Tables 1 and 2).
"""

from whale_jax.data.metaworld import TASKS
from whale_jax.jobs.configuration import default_config


def get_config():
    config = default_config("rssm")
    config.name = "dreamer_v3"
    config.data.record.tasks = TASKS
    config.model.num_frames = 8

    rate = {"max_lr": 1e-4, "min_lr": 1e-4, "warmup": 0}
    config.stages.rssm.update({"steps": 100_000, "batch_size": 32, "b1": 0.9, "b2": 0.999, "clip": 1000.0, **rate})
    config.stages.reward.update({"steps": 50_000})
    return config
