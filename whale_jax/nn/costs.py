"""Training FLOPs of a transformer as scaling laws count them (docs/method.md §17)."""

from whale_jax.nn.transformer import TransformerSettings


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
