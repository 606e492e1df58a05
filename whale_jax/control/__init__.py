"""Learning to act in imagined environments."""
