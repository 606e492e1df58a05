"""Which policy is better."""
