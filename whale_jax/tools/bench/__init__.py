"""`whale bench`."""
