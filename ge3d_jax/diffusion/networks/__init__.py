"""The networks of Stable Diffusion in Flax, numerically equal to those of diffusers and transformers."""
