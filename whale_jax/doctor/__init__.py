"""What is wrong with a machine, or with a data set's actions."""
