"""Fine-tuning of the quick-start model on sixty episodes of another task, seen by another camera (docs/finetune.md).

Command:  bash launch/finetune.sh --config=configs/finetune_small.py --checkpoint=runs/quickstart --data=runs/robot
          --workdir=runs/finetuned --compare=scratch,no-behaviour
Time:     eight minutes on one core; half an hour with the comparisons.
Expected: moving-region PSNR at horizon 8 of 16.7 dB, 16.6 from scratch with twice the steps, 11.5 if the last frame
          is repeated.
"""

from whale_jax.jobs.finetune import ENCODER, finetune_config

STEPS = {"tokenizer": 400, "behaviour": 100, "dynamics": 800, "reward": 200}


def finetune(pretrained, scratch=False):
    config = finetune_config(pretrained, scratch)
    for name, steps in STEPS.items():
        stage = config.stages[name]
        stage.steps, stage.warmup = 2 * steps if scratch else steps, 20
        stage.eval_every, stage.save_every = stage.steps // 10, stage.steps // 2
    if not scratch:
        # Codes that were learnt from one camera fit another badly. The paper also freezes only the encoder.
        config.stages.tokenizer.freeze = ENCODER
    return config
