"""Whole jobs: pre-training, fine-tuning, scaling studies."""
