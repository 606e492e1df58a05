"""Whale: tokenizer, behaviour model and dynamics, and the stages that train them."""
