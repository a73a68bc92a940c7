"""Optimizable scenes, behind one protocol."""
