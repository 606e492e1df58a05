"""What passes between packages: episodes, batches, and what actions mean."""
