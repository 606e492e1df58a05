"""How good imagined frames are."""
