"""Foundations that every other package imports; this one imports none of them."""
