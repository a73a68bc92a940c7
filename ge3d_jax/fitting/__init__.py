"""Splats from posed pictures, the classic reconstruction; no diffusion."""
