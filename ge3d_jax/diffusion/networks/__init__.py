"""The networks of Stable Diffusion in Flax, each equal to diffusers' and transformers'."""
