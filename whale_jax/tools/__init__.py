"""Measurements of training and sampling, and the costs of a config."""
