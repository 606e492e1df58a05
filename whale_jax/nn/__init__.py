"""Building blocks of networks: attention, transformer, quantiser and perceptual networks."""
