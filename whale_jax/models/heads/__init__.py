"""Models that predict from frames and actions, and work with any world model."""
