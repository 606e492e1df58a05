"""`whale inspect`."""
