"""Data that packages exchange: episodes, batches, and the meaning of actions."""
