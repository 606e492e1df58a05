"""A user's own recordings, through the contract of a robot's actions."""
