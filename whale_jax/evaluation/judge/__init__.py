"""The judge suite: a vision-language model says whether the imagined end agrees with the real one."""
