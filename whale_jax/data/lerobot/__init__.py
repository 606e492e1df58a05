"""Reads and writes LeRobot data sets."""
