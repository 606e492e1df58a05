"""What is read off frames and actions, for any world model."""
