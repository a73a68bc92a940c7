"""Starts: the initial splats of a scene."""
