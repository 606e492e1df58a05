"""One loop, its step, checkpoints and sharding."""
