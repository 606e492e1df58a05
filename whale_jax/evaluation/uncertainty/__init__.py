"""Does the model know when it is wrong."""
