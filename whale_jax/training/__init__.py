"""The training loop with its step, checkpoints and sharding."""
