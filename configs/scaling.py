"""The paper's scaling study: Whale-X dynamics of 39, 77, 204 and 456 M on nested shares of the data, then fine-tuned.

Tokenizer and behaviour model are trained once, on all the data, and frozen. Only the dynamics are fine-tuned, on your
episode store, whose held-out episodes are the test set.

Command:  whale scale --config=configs/scaling.py --workdir=DIR --config.data.root=DIR \\
              --config.scaling.finetune.root=DIR
Data:     the 27 Open X-Embodiment data sets (docs/oxe.md), and an episode store of 256x256 pixels and 7-D actions.
Time:     not measured. If the time of a cell is proportional to its parameters (the paper's base: 204 M in 3 days on
          eight RTX 4090), the 16 cells take 46 days there, after a week for tokenizer and behaviour model.
Expected: the paper's claim: training loss falls in proportion to the logarithm of FLOPs, and test MSE after fine-tuning
          is lower for larger models and more data (docs/scale.md has what was measured here).
"""

from pathlib import Path

from whale_jax.jobs.configuration import load_config

WHALE_X = Path(__file__).with_name("whale_x.py")


def get_config():
    config = load_config(str(WHALE_X))
    config.name = "scaling"
    variants = {name: load_config(f"{WHALE_X}:{name}") for name in ("small", "medium", "base", "large")}
    dynamics = {name: variant.model.dynamics.transformer for name, variant in variants.items()}
    config.scaling = {
        "sizes": {name: (t.num_layers, t.width, t.num_heads) for name, t in dynamics.items()},
        "fractions": (0.125, 0.25, 0.5, 1.0),
        # The paper gives the number of steps; the rates are those in which its pre-training ends and begins.
        "finetune": {"root": "", "steps": 5000, "max_lr": 3e-5, "min_lr": 3e-6, "warmup": 500},
    }
    return config
