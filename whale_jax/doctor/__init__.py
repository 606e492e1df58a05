"""Diagnosis of a machine, and of a data set's actions."""
