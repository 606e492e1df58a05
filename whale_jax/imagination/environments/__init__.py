"""Gymnasium environments that a world model imagines."""
