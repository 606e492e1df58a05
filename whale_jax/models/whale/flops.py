"""FLOPs by formula: 2 per multiply-add, and the backward pass counts twice the forward pass (docs/method.md §17)."""

from whale_jax.models.whale.world_model import WorldModelSettings
from whale_jax.nn.transformer import TransformerSettings


def transformer_flops(settings: TransformerSettings, frames: int, tokens: int) -> float:
    """Returns the FLOPs of a forward pass over one segment of `frames` x `tokens`.

    They are those of 16 d² weights per token and block, and those of attention.
    """
    d = settings.width
    span = tokens + (frames + 1) / 2 if settings.causal else tokens + frames
    return settings.num_blocks * frames * tokens * (2 * 16 * d**2 + 4 * d * span)


def forward_flops(model: WorldModelSettings, frames: int) -> dict[str, float]:
    """Returns the FLOPs of each part's forward pass over one segment, including embeddings and heads."""
    t, b, d = model.tokenizer, model.behaviour, model.dynamics
    pixels = 3 * t.patch**2
    flops = {
        "encoder": transformer_flops(t.encoder, frames, t.num_tokens)
        + 2 * frames * t.num_tokens * (t.encoder.width * (pixels + t.code_width) + t.code_width * t.num_codes),
        "decoder": transformer_flops(t.decoder, frames, t.num_tokens)
        + 2 * frames * t.num_tokens * t.decoder.width * (pixels + t.code_width),
        "dynamics": transformer_flops(d.transformer, frames, t.num_tokens)
        + 2 * frames * t.num_tokens * d.transformer.width * d.num_codes,
    }
    for name in ("posterior", "prior", "policy"):
        settings = getattr(b, name)
        flops[name] = transformer_flops(settings, frames, b.num_tokens)
        flops[name] += 2 * frames * b.num_tokens * settings.width * 3 * b.patch**2
    height, width = t.image_size
    area, channels, reward = height * width, 6, 0.0
    for out in model.reward.channels:
        area = area // 4
        reward += 2 * 16 * area * channels * out
        channels = out
    hidden = model.reward.hidden
    reward += 2 * (area * channels * hidden + hidden**2 + hidden * model.reward.bins)
    flops["reward"] = frames * reward
    return flops


def stage_flops(stage: str, model: WorldModelSettings, frames: int, batch_size: int, members: int = 0) -> float:
    """Returns the FLOPs of one training step: three forward passes of the trained networks, one of the frozen ones.

    `parallel` dynamics and the reward model take one frame less, because no frame follows a segment's last one. Half
    of the reward model's rows are real frames, which the frozen networks do not see.
    """
    f = forward_flops(model, frames)
    moved = forward_flops(model, frames - (model.dynamics.decode_mode == "parallel"))["dynamics"]
    prior = f["prior"] if model.dynamics.embedding_dim else 0.0
    total = {
        "tokenizer": 3 * (f["encoder"] + f["decoder"]),
        "behaviour": 3 * (f["posterior"] + f["prior"] + f["policy"]),
        "dynamics": 3 * moved + f["encoder"] + prior,
        "reward": 3 * f["reward"] * (frames - 1) / frames + (f["encoder"] + f["decoder"]) / 2,
        "ensemble": (members - 1) * 3 * moved + f["encoder"] + prior,
    }
    return batch_size * total[stage]


def textbook_flops(parameters: int, settings: TransformerSettings, frames: int, tokens: int) -> tuple[float, float]:
    """Returns training FLOPs per token as scaling laws count them, for the parameters and for attention.

    They are 6 per parameter, and 12·d·(N + T/2) per block for attention.

    Args:
      parameters: number of trained parameters.
      settings: settings of the transformer.
      frames: T, frames per segment.
      tokens: N, tokens per frame.
    """
    return 6.0 * parameters, 12.0 * settings.width * (tokens + frames / 2) * settings.num_blocks
