"""A user's own recordings, read through the contract of a robot's actions."""
