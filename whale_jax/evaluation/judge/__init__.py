"""Does the imagined end agree with the real one, as a vision-language model sees it."""
