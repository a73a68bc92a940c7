"""Shared building blocks that depend on no other part: errors, files, settings, devices, random numbers."""
