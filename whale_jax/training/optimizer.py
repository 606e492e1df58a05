"""AdamW with warm-up, cosine decay and clipping (Tables 5 to 8)."""

from typing import Any

import jax
import optax

from whale_jax.base.errors import unknown_name
from whale_jax.training.settings import StageSettings


def schedule(settings: StageSettings) -> optax.Schedule:
    """Returns the learning rate: linear from 0 to max_lr in `warmup` steps, then cosine to min_lr at `steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=settings.max_lr,
        warmup_steps=settings.warmup,
        # Optax counts the warm-up as part of the decay's steps, and needs at least one step of decay.
        decay_steps=max(settings.steps, settings.warmup + 1),
        end_value=settings.min_lr,
    )


def trained(settings: StageSettings, params: dict[str, Any]) -> dict[str, Any]:
    """Returns the parts of a component that its stage trains, by first name.

    Raises:
      WhaleError: the settings freeze a part that does not exist.
    """
    for name in settings.freeze:
        if name not in params:
            raise unknown_name("part to freeze", name, params)
    return {name: part for name, part in params.items() if name not in settings.freeze}


def optimizer(settings: StageSettings) -> optax.GradientTransformation:
    """Returns clipping by global norm followed by AdamW, whose weight decay excludes vectors (norms and biases)."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip),
        optax.adamw(
            schedule(settings),
            b1=settings.b1,
            b2=settings.b2,
            eps=1e-8,
            weight_decay=settings.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
