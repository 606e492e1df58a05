"""Attention, transformer, quantiser and perceptual networks."""
