"""Whale-X on an ARX-5: the paper's fine-tuning on four tasks with sixty demonstrations each (Table 4, Appendix B.2).

Command:  whale data import --from=DIR --to=runs/arx5-data --robot=configs/robots/arx5.yaml --image-size=256
          bash launch/finetune.sh --config=configs/finetune_arx5.py --checkpoint=runs/whale_x --data=runs/arx5-data
          --workdir=runs/arx5 --compare=scratch,no-behaviour
Expected: PSNR 22.3, SSIM 80.5, LPIPS 29.6 after fine-tuning, 20.0, 74.9, 37.0 from scratch, 21.4, 79.0, 31.2 without
          behaviour conditioning (the paper's figures). Not run here, because it needs a pre-trained Whale-X.
"""

from whale_jax.jobs.finetune import finetune_config


def finetune(pretrained, scratch=False):
    config = finetune_config(pretrained, scratch)
    config.stages.reward.steps = 0  # the paper's robot has no rewards
    config.evaluation.context = 2
    config.evaluation.horizon = 16
    config.evaluation.start = -1
    return config
