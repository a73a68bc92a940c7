"""Flags and conventions shared by the scripts."""
