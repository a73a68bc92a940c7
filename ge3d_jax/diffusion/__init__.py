"""Stable Diffusion as pure functions: UNet, VAE, text encoder, DDIM, and checkpoints."""
