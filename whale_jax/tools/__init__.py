"""Measurements of training and sampling, and what a config costs."""
