"""Stable Diffusion's networks in Flax, numerically equal to those of diffusers and transformers."""
